import contextlib
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError
from oci2boot.formats import elf
from tests.witness import program

PROGRAMS = ["/bin/mount", "/bin/sh", "/sbin/mke2fs", "/lib/x86_64-linux-gnu/libmount.so.1"]


@pytest.mark.parametrize("path", PROGRAMS)
def test_what_a_program_needs_is_what_readelf_says(path: str) -> None:
    argv = [program("readelf"), "--wide", "--dynamic", "--program-headers", "--file-header", path]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, env={"LC_ALL": "C"}).stdout
    parsed = elf.parse(Path(path).read_bytes())
    assert list(parsed.needed) == re.findall(r"\(NEEDED\)\s+Shared library: \[(.*)\]", said)
    assert ([parsed.interpreter] if parsed.interpreter else []) == re.findall(r"program interpreter: (.*)\]", said)
    assert parsed.machine == 62  # EM_X86_64
    assert "X86-64" in said


def build(tmp_path: Path, *flags: str) -> bytes:
    (tmp_path / "a.c").write_text("int main(void) { return 0; }\n")
    argv = [program("gcc"), *flags, "-o", str(tmp_path / "a"), str(tmp_path / "a.c")]
    subprocess.run(argv, check=True)
    return (tmp_path / "a").read_bytes()


def test_search_paths_are_read(tmp_path: Path) -> None:
    linked = build(tmp_path, "-Wl,--enable-new-dtags,-rpath,$ORIGIN/lib:/opt/x")
    assert elf.parse(linked).runpath == ("$ORIGIN/lib", "/opt/x")
    assert elf.parse(build(tmp_path, "-Wl,--disable-new-dtags,-rpath,/opt/y")).runpath == ("/opt/y",)


def test_a_static_program_needs_nothing(tmp_path: Path) -> None:
    parsed = elf.parse(build(tmp_path, "-static"))
    assert (parsed.interpreter, parsed.needed) == (None, ())


def test_other_files_are_refused() -> None:
    for data in (b"", b"#!/bin/sh\n" + bytes(200), b"\x7fELF" + bytes(200), b"\x7fELF\x02\x02" + bytes(200)):
        with pytest.raises(FormatError):
            elf.parse(data)


HEAD = Path("/bin/mount").read_bytes()


@given(st.lists(st.tuples(st.integers(0, 1023), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_damaged_headers_are_parsed_or_an_error(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(HEAD)
    for at, change in changes:
        data[at : at + len(change)] = change
    with contextlib.suppress(Error):
        elf.parse(bytes(data))
