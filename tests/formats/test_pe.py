import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats import pe
from tests.boot.debian import package
from tests.witness import program
from tests.workflows.sealable import with_sections

EFI = "usr/lib/systemd/boot/efi"
OBJDUMP_SECTION = re.compile(r"^\s+\d+ (\S+)\s+([0-9a-f]{8})\s+\S+\s+\S+\s+([0-9a-f]{8})", re.MULTILINE)


@pytest.fixture(scope="module")
def stub() -> bytes:
    return (package("systemd-boot-efi") / EFI / "linuxx64.efi.stub").read_bytes()


def by_objdump(path: Path) -> list[tuple[str, int, int]]:
    said = subprocess.run([program("objdump"), "-h", path], check=True, capture_output=True, text=True).stdout
    return [(name, int(size, 16), int(offset, 16)) for name, size, offset in OBJDUMP_SECTION.findall(said)]


@pytest.mark.parametrize("name", ["linuxx64.efi.stub", "systemd-bootx64.efi", "addonx64.efi.stub"])
def test_sections_are_those_that_objdump_lists(name: str) -> None:
    path = package("systemd-boot-efi") / EFI / name
    data = path.read_bytes()
    parsed = pe.parse(data)
    sections = [(s.name.decode(), len(pe.contents(data, s)), s.pointer_to_raw_data) for s in parsed.sections]
    assert sections == by_objdump(path)
    assert parsed.machine == "x86_64"
    assert not parsed.signed


def test_every_header_is_packed_as_it_was(stub: bytes) -> None:
    parsed = pe.parse(stub)
    for at, record in (
        (parsed.file_header_offset, parsed.file_header.pack()),
        (parsed.optional_header_offset, parsed.optional_header.pack()),
        (parsed.section_table_offset, b"".join(section.pack() for section in parsed.sections)),
    ):
        assert stub[at : at + len(record)] == record


def with_section(data: bytes, index: int, change: Callable[[pe.SectionHeader], pe.SectionHeader]) -> bytes:
    parsed = pe.parse(data)
    at = parsed.section_table_offset + index * pe.SectionHeader.layout().size
    packed = change(parsed.sections[index]).pack()
    return data[:at] + packed + data[at + len(packed) :]


# What pefile takes with clamped data (duplicates, overlaps, ranges outside the file) is refused.
@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (3, lambda s: replace(s, size_of_raw_data=1 << 31), "ends after the file"),
        (3, lambda s: replace(s, pointer_to_raw_data=0xFFFFFF00), "ends after the file"),
        (3, lambda s: replace(s, virtual_size=1 << 31), "larger in memory"),
        (3, lambda s: replace(s, pointer_to_raw_data=0x600), "overlap"),
        (3, lambda s: replace(s, pointer_to_raw_data=0), "overlap"),
        (4, lambda s: replace(s, raw_name=b".sbat\0\0\0"), "more than one"),
        (4, lambda s: replace(s, raw_name=b".sb\xe4t\0\0\0"), "named"),
        (4, lambda s: replace(s, raw_name=b".a\0b\0\0\0\0"), "named"),
    ],
)
def test_what_two_readers_could_see_differently_is_refused(
    stub: bytes, index: int, change: Callable[[pe.SectionHeader], pe.SectionHeader], words: str
) -> None:
    with pytest.raises(FormatError, match=words):
        pe.parse(with_section(stub, index, change))


def test_programs_for_other_subsystems_and_too_many_sections_are_refused(stub: bytes) -> None:
    parsed = pe.parse(stub)
    at = parsed.optional_header_offset
    console = replace(parsed.optional_header, subsystem=3).pack()
    with pytest.raises(FormatError, match="subsystem 3"):
        pe.parse(stub[:at] + console + stub[at + len(console) :])
    at = parsed.file_header_offset
    many = replace(parsed.file_header, number_of_sections=97).pack()
    with pytest.raises(LimitError):
        pe.parse(stub[:at] + many + stub[at + len(many) :])


@pytest.mark.parametrize("data", [b"", b"MZ", b"MZ" + bytes(100), b"\x7fELF" + bytes(100)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        pe.parse(data)


def test_thousands_of_sections_are_refused_before_they_are_read(stub: bytes) -> None:
    at = pe.parse(stub).file_header_offset
    many = replace(pe.parse(stub).file_header, number_of_sections=0xFFFF).pack()
    with pytest.raises(LimitError, match="65535 sections"):
        pe.parse(stub[:at] + many + stub[at + len(many) :] + bytes(40 * 0x10000))


def test_names_are_unique_within_each_profile(stub: bytes) -> None:
    """systemd-stub takes the first in the base or profile, other readers the last."""
    kernel, line, profile = (b".linux", b"x"), (b".cmdline", b"rw"), (b".profile", b"ID=a")
    pe.parse(with_sections(stub, [kernel, line, profile, line, profile, line]))
    pe.parse(with_sections(stub, [kernel, line, (b".dtbauto", b"a"), (b".dtbauto", b"b")]))
    for sections in ([kernel, line, line], [kernel, profile, line, line], [kernel, line, kernel]):
        with pytest.raises(FormatError, match="more than one section"):
            pe.parse(with_sections(stub, sections))


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (60, b"\xf0\xff\xff\xff"),  # e_lfanew past the end
        (60, b"\0\0\0\0"),
        ("optional size", b"\xff\xff"),
        ("optional size", b"\x10\0"),
        ("directories", b"\xff\xff\xff\xff"),
        ("directories", b"\x11\0\0\0"),
        ("section alignment", b"\0\0\0\0"),
        ("file alignment", b"\x03\0\0\0"),
        ("file alignment", b"\0\0\0\x80"),
        ("headers", b"\xff\xff\xff\xff"),
        ("headers", b"\x40\0\0\0"),
        ("magic", b"\x07\x01"),
    ],
)
def test_headers_that_lead_outside_are_refused(stub: bytes, offset: int | str, value: bytes) -> None:
    at = pe.parse(stub).file_header_offset
    places = {
        "optional size": at + 16, "magic": at + 20, "section alignment": at + 20 + 32, "file alignment": at + 20 + 36,
        "headers": at + 20 + 60, "directories": at + 20 + 108,
    }  # fmt: skip
    place = places[offset] if isinstance(offset, str) else offset
    with pytest.raises(FormatError):
        pe.parse(stub[:place] + value + stub[place + len(value) :])


@given(st.lists(st.tuples(st.integers(0, 0x400), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_damaged_headers_are_parsed_or_an_error(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray((package("systemd-boot-efi") / EFI / "linuxx64.efi.stub").read_bytes())
    for at, change in changes:
        data[at : at + len(change)] = change
    with suppress(Error):
        parsed = pe.parse(bytes(data))
        for section in parsed.sections:
            pe.contents(bytes(data), section)
