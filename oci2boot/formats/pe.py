"""Portable Executables as EFI loads them, read strictly. Microsoft, "PE Format"; UAPI.5 for unified kernel images.

What lenient readers clamp or overlook is an error here: two readers that see different sections can be played off
against each other.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, Final

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.binary import U8, U16, U32, Record

MAX_SECTIONS: Final = 96
"""The Windows loader's limit; systemd's stubs up to 257 have room for 30."""

MACHINES: Final = {0x8664: "x86_64", 0xAA64: "aarch64", 0x014C: "i686", 0x5064: "riscv64", 0x6264: "loongarch64"}

DOS_MAGIC: Final = b"MZ"
PE32_PLUS: Final = 0x20B
PE32: Final = 0x10B
EFI_SUBSYSTEMS: Final = (10, 11, 12)  # application, boot service driver, runtime driver
SECURITY_DIRECTORY: Final = 4

UKI_SECTIONS: Final = frozenset(
    b".linux .osrel .cmdline .initrd .ucode .splash .dtb .uname .sbat .pcrsig .pcrpkey .profile .dtbauto .hwids .efifw"
    b" .sdmagic .sbom".split()
)
"""Names that systemd-stub looks up."""
REPEATED: Final = frozenset((b".dtbauto", b".efifw"))
"""Those that may appear more than once in a profile."""


@dataclass(frozen=True, slots=True)
class FileHeader(Record):
    machine: U16
    number_of_sections: U16
    time_date_stamp: U32
    pointer_to_symbol_table: U32
    number_of_symbols: U32
    size_of_optional_header: U16
    characteristics: U16


@dataclass(frozen=True, slots=True)
class OptionalHeader(Record):
    """As far as PE32 and PE32+ agree on offsets; ImageBase (and BaseOfData) are the 8 opaque bytes."""

    magic: U16
    major_linker_version: U8
    minor_linker_version: U8
    size_of_code: U32
    size_of_initialized_data: U32
    size_of_uninitialized_data: U32
    address_of_entry_point: U32
    base_of_code: U32
    image_base: Annotated[bytes, "8s"]
    section_alignment: U32
    file_alignment: U32
    versions: Annotated[bytes, "16s"]
    size_of_image: U32
    size_of_headers: U32
    check_sum: U32
    subsystem: U16
    dll_characteristics: U16


@dataclass(frozen=True, slots=True)
class SectionHeader(Record):
    raw_name: Annotated[bytes, "8s"]
    virtual_size: U32
    virtual_address: U32
    size_of_raw_data: U32
    pointer_to_raw_data: U32
    pointer_to_relocations: U32
    pointer_to_line_numbers: U32
    number_of_relocations: U16
    number_of_line_numbers: U16
    characteristics: U32

    @property
    def name(self) -> bytes:
        return self.raw_name.rstrip(b"\0")


@dataclass(frozen=True, slots=True)
class DataDirectory(Record):
    virtual_address: U32
    size: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pe:
    """An executable's headers; `offset`s are from the start of the file."""

    file_header_offset: int
    file_header: FileHeader
    optional_header: OptionalHeader
    directories: tuple[DataDirectory, ...]
    section_table_offset: int
    sections: tuple[SectionHeader, ...]

    @property
    def optional_header_offset(self) -> int:
        return self.file_header_offset + FileHeader.layout().size

    @property
    def machine(self) -> str:
        number = self.file_header.machine
        return MACHINES.get(number, f"{number:#06x}")

    @property
    def signed(self) -> bool:
        return len(self.directories) > SECURITY_DIRECTORY and self.directories[SECURITY_DIRECTORY].size > 0

    def sections_named(self, name: bytes) -> list[SectionHeader]:
        return [section for section in self.sections if section.name == name]


def contents(data: bytes, section: SectionHeader) -> bytes:
    """Return what the stub uses and measures of a section: its virtual size, without the padding in the file."""
    start = section.pointer_to_raw_data
    return data[start : start + min(section.virtual_size, section.size_of_raw_data)]


def parse(data: bytes) -> Pe:
    """Read and check the headers of an EFI executable: a stub, a kernel or a unified kernel image."""
    if data[:2] != DOS_MAGIC or len(data) < 64:
        raise FormatError("not an EFI executable: no MZ header")
    at = int.from_bytes(data[60:64], "little")
    if data[at : at + 4] != b"PE\0\0":
        raise FormatError("not an EFI executable: no PE header")
    file_header = FileHeader.unpack(data, at + 4)
    optional_at = at + 4 + FileHeader.layout().size
    optional = OptionalHeader.unpack(data, optional_at)
    if optional.magic not in (PE32, PE32_PLUS):
        raise FormatError(f"an executable with the unknown magic {optional.magic:#x}")
    if optional.subsystem not in EFI_SUBSYSTEMS:
        raise FormatError(f"an executable for subsystem {optional.subsystem}, not for EFI")
    _check_alignment(optional)
    directories = _directories(data, optional_at, optional.magic, file_header.size_of_optional_header)
    table = optional_at + file_header.size_of_optional_header
    count = file_header.number_of_sections
    if count > MAX_SECTIONS:
        raise LimitError(f"an executable with {count} sections, at most {MAX_SECTIONS} are read")
    size = SectionHeader.layout().size
    sections = tuple(SectionHeader.unpack(data, table + index * size) for index in range(count))
    if table + count * size > optional.size_of_headers or optional.size_of_headers > len(data):
        raise FormatError("an executable whose headers do not fit in the size it gives for them")
    _check_sections(len(data), optional.size_of_headers, sections)
    return Pe(
        file_header_offset=at + 4,
        file_header=file_header,
        optional_header=optional,
        directories=directories,
        section_table_offset=table,
        sections=sections,
    )


def _check_alignment(optional: OptionalHeader) -> None:
    file_alignment, section_alignment = optional.file_alignment, optional.section_alignment
    for alignment in (file_alignment, section_alignment):
        if not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
            raise FormatError(f"an executable with the alignment {alignment}, not a power of two up to 64 KiB")
    if section_alignment < file_alignment:
        raise FormatError("an executable with sections aligned less in memory than in the file")


def _directories(data: bytes, at: int, magic: int, size: int) -> tuple[DataDirectory, ...]:
    count_at = 108 if magic == PE32_PLUS else 92
    if size < count_at + 4 or at + size > len(data):
        raise FormatError("an executable whose optional header is cut short")
    count = int.from_bytes(data[at + count_at : at + count_at + 4], "little")
    if count > 16 or count_at + 4 + 8 * count > size:
        raise FormatError(f"an executable with {count} data directories, more than its header holds")
    return tuple(DataDirectory.unpack(data, at + count_at + 4 + 8 * index) for index in range(count))


def _check_sections(file_size: int, headers: int, sections: tuple[SectionHeader, ...]) -> None:
    seen: set[bytes] = set()
    used: list[tuple[int, int, bytes]] = [(0, headers, b"header")]
    for section in sections:
        name = section.name
        if not name.isascii() or not name.decode("ascii", "replace").isprintable() or b"\0" in name:
            raise FormatError(f"an executable with a section named {name!r}")
        shown = name.decode()
        start, end = section.pointer_to_raw_data, section.pointer_to_raw_data + section.size_of_raw_data
        if end > file_size:
            raise FormatError(f"an executable whose section {shown} ends after the file")
        if section.size_of_raw_data:
            used.append((start, end, name))
        if name == b".profile":
            seen = {b".profile"}
        elif name in UKI_SECTIONS:
            if section.virtual_size > section.size_of_raw_data:
                raise FormatError(f"an executable whose section {shown} is larger in memory than in the file")
            if name in seen and name not in REPEATED:
                raise FormatError(f"an executable with more than one section {shown}")
            seen.add(name)
    used.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(used):
        if start < end:
            raise FormatError(
                f"an executable whose sections {first.decode()} and {second.decode()} overlap in the file"
            )
