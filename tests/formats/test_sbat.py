"""`.sbat` of Debian's boot loader, as objcopy takes it out."""

import csv
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import FormatError
from oci2boot.formats.sbat import Entry, parse_level, read_entries, read_sbat
from oci2boot.system.run import Argv
from tests.boot.debian import package
from tests.witness import program
from tests.workflows.sealable import with_sections

PLAIN = package("systemd-boot-efi") / "usr/lib/systemd/boot/efi"


def test_the_entries_are_those_of_the_section(tmp_path: Path) -> None:
    source = PLAIN / "systemd-bootx64.efi"
    argv: Argv = [program("objcopy"), "--dump-section", f".sbat={tmp_path / 'sbat'}", source, tmp_path / "copy.efi"]
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
    header, *entries = csv.reader((tmp_path / "sbat").read_bytes().rstrip(b"\0").decode().splitlines())
    assert header[0] == "sbat"
    assert [line.split(",") for line in read_sbat(source.read_bytes())] == entries
    assert read_entries(source.read_bytes()) == [Entry(words[0], int(words[1]), words[4]) for words in entries]
    assert entries[0][0] == "systemd-boot"


def test_a_program_need_not_say_anything() -> None:
    silent = (PLAIN / "systemd-bootx64.efi").read_bytes().replace(b".sbat\0", b".none\0")
    assert (read_sbat(silent), read_entries(silent)) == ([], [])
    for text in (b"no header,1\nx,1,y,z,2,url\n", b"sbat,1\nx,one,y\n", b"sbat,1\n\x07,1,y,z,2,url\n"):
        assert read_entries(with_sections(silent, [(b".sbat", text)])) == []


def test_the_level_is_as_shim_publishes_it() -> None:
    """shim, SbatLevel_Variable.txt: a date, and of each component the first generation that may start."""
    assert parse_level(b"sbat,1,2024010900\nshim,4\ngrub,3\ngrub.debian,4\n\0") == [
        Entry("shim", 4, ""),
        Entry("grub", 3, ""),
        Entry("grub.debian", 4, ""),
    ]
    for text in (b"", b"shim,4\n", b"sbat,1\nshim\n", b"sbat,1\nshim,-1\n", b"sbat,1\n\xff,1\n", b"sbat,1\nshim,1e3\n"):
        with pytest.raises(FormatError):
            parse_level(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    silent = (PLAIN / "systemd-bootx64.efi").read_bytes().replace(b".sbat\0", b".none\0")
    with pytest.raises(FormatError, match="not text"):
        read_sbat(with_sections(silent, [(b".sbat", b"sbat,1\n\xff\n")]))
