"""Which builder makes a UKI, where nobody says it: ours, since each machine has another ukify, or none. C.24, C.25"""

import sys
from pathlib import Path

import pytest

from oci2boot.oci.reference import Reference
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest
from tests.boot.debian import package
from tests.oci.layouts import Layout
from tests.workflows.sealable import EFI, add_image, base, stub, tar


def built(layout: Layout, tag: str, repo: Path, boot: BootOptions) -> bytes:
    source = Reference.parse(f"oci:{layout.path}:{tag}")
    bootable = convert(ConvertRequest(source=source, repo=repo, name="x", boot=boot), silent)
    (name,) = (str(digest) for path, digest in bootable.esp.items() if path.startswith("EFI/Linux/"))
    return (repo / "objects" / name[:2] / name[2:]).read_bytes()


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put Debian's ukify first on PATH; it leaves a trace where the fixture says."""
    folder, trace = tmp_path / "bin", tmp_path / "ran"
    folder.mkdir()
    script = package("systemd-ukify") / "usr/bin/ukify"
    (folder / "ukify").write_text(f'#!/bin/sh\ntouch {trace}\nexec {sys.executable} {script} "$@"\n')
    (folder / "ukify").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return trace


def test_a_ukify_that_is_there_does_not_change_what_is_built(layout: Layout, ran: Path, tmp_path: Path) -> None:
    """By default; one that is named is run."""
    own = built(layout, "base", tmp_path / "a", BootOptions(ukify="builtin"))
    assert built(layout, "base", tmp_path / "b", BootOptions()) == own
    assert not ran.exists()
    built(layout, "base", tmp_path / "c", BootOptions(ukify=str(ran.with_name("bin") / "ukify")))
    assert ran.exists()


def test_a_stub_that_only_ukify_takes_is_left_to_it(ran: Path, tmp_path: Path) -> None:
    """systemd before 254 has a symbol table in its stubs."""
    old = bytearray(stub())
    at = int.from_bytes(old[60:64], "little") + 12
    old[at : at + 4] = len(old).to_bytes(4, "little")
    layout = Layout(tmp_path / "layout")
    add_image(layout, [*base(), tar({f"{EFI}/linuxx64.efi.stub": bytes(old)})], "old")
    assert built(layout, "old", tmp_path / "repo", BootOptions())
    assert ran.exists()
