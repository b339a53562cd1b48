import contextlib
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats import os_release


def by_the_shell(data: bytes, name: str, path: Path) -> str:
    """os-release(5): the format is a subset of the shell's."""
    path.write_bytes(data)
    script = f'. {shlex.quote(str(path))}; printf %s "${name}"'
    return subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True, env={}).stdout


def test_values_are_those_that_the_shell_sees(tmp_path: Path) -> None:
    data = b'# c\nID=debian\nNAME="A \\"b\\" \\$c \\\\ \\`d"\nPRETTY_NAME=\'x $y\'\nVERSION_ID=13\nID=last\nEMPTY=\n'
    parsed = os_release.parse(data)
    assert set(parsed) == {"ID", "NAME", "PRETTY_NAME", "VERSION_ID", "EMPTY"}
    for name, value in parsed.items():
        assert value == by_the_shell(data, name, tmp_path / "os-release")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp", "Zs")), max_size=30))
def test_a_field_that_is_set_is_read_back_and_nothing_else_changes(value: str) -> None:
    before = b"ID=debian\nIMAGE_VERSION=1\n# end\nIMAGE_VERSION=2\n"
    after = os_release.with_fields(before, {"IMAGE_VERSION": value})
    assert os_release.parse(after) == {"ID": "debian", "IMAGE_VERSION": value}
    assert after.startswith(b"ID=debian\n# end\nIMAGE_VERSION=")


def test_a_field_that_is_set_is_what_the_shell_sees(tmp_path: Path) -> None:
    value = "a b $HOME `id` \"q\" \\ 'x'"
    after = os_release.with_fields(b"ID=debian\n", {"IMAGE_ID": value})
    assert by_the_shell(after, "IMAGE_ID", tmp_path / "os-release") == value


def test_values_that_would_add_lines_are_refused() -> None:
    with pytest.raises(FormatError):
        os_release.with_fields(b"", {"IMAGE_ID": "a\nID=b"})


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_an_error(data: bytes) -> None:
    with contextlib.suppress(Error):
        os_release.parse(data)


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(LimitError):
        os_release.parse(b"#" * (os_release.MAX_SIZE + 1))
