"""What a program or library needs to be loaded. System V gABI, chapters 4 and 5: headers and dynamic section."""

from dataclasses import dataclass
from typing import Annotated, Final

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.binary import U8, U16, U32, U64, Record

MAX_PROGRAM_HEADERS: Final = 256
MAX_DYNAMIC: Final = 4096
MAX_STRING: Final = 4096

_LITTLE_ENDIAN: Final = 1
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29


@dataclass(frozen=True, slots=True)
class Ident(Record):
    magic: Annotated[bytes, "4s"]
    bits: U8  # 1: 32, 2: 64
    encoding: U8
    version: U8
    padding: Annotated[bytes, "9s"]
    type: U16
    machine: U16


@dataclass(frozen=True, slots=True)
class Header64(Record):
    version: U32
    entry: U64
    program_headers: U64
    section_headers: U64
    flags: U32
    size: U16
    program_header_size: U16
    program_header_count: U16


@dataclass(frozen=True, slots=True)
class Header32(Record):
    version: U32
    entry: U32
    program_headers: U32
    section_headers: U32
    flags: U32
    size: U16
    program_header_size: U16
    program_header_count: U16


@dataclass(frozen=True, slots=True)
class ProgramHeader64(Record):
    type: U32
    flags: U32
    offset: U64
    address: U64
    physical: U64
    file_size: U64


@dataclass(frozen=True, slots=True)
class ProgramHeader32(Record):
    type: U32
    offset: U32
    address: U32
    physical: U32
    file_size: U32


@dataclass(frozen=True, slots=True)
class Dynamic64(Record):
    tag: U64
    value: U64


@dataclass(frozen=True, slots=True)
class Dynamic32(Record):
    tag: U32
    value: U32


@dataclass(frozen=True, slots=True)
class Elf:
    machine: int
    interpreter: str | None
    needed: tuple[str, ...]
    runpath: tuple[str, ...]
    """Directories of DT_RUNPATH, or DT_RPATH where that is absent; `$ORIGIN` is left in."""


def is_elf(data: bytes) -> bool:
    return data[:4] == b"\x7fELF"


def parse(data: bytes) -> Elf:
    """Read a little-endian ELF file of 32 or 64 bits; a static one needs nothing."""
    ident = Ident.unpack(data)
    if ident.magic != b"\x7fELF" or ident.bits not in (1, 2) or ident.encoding != _LITTLE_ENDIAN:
        raise FormatError("not a little-endian ELF file")
    wide = ident.bits == 2
    header: Header64 | Header32 = (Header64 if wide else Header32).unpack(data, Ident.layout().size)
    if header.program_header_count > MAX_PROGRAM_HEADERS:
        raise LimitError(
            f"an ELF file with {header.program_header_count} program headers, at most {MAX_PROGRAM_HEADERS} are read"
        )
    if header.program_header_size < (56 if wide else 32):
        raise FormatError("an ELF file with program headers that are too small")
    programs: list[ProgramHeader64 | ProgramHeader32] = [
        (ProgramHeader64 if wide else ProgramHeader32).unpack(
            data, header.program_headers + index * header.program_header_size
        )
        for index in range(header.program_header_count)
    ]

    def in_file(address: int) -> int:
        for program in programs:
            if program.type == _PT_LOAD and program.address <= address < program.address + program.file_size:
                return address - program.address + program.offset
        raise FormatError(f"an ELF file whose address {address:#x} is not in the file")

    interpreter = next((_string(data, program.offset) for program in programs if program.type == _PT_INTERP), None)
    dynamic = next((program for program in programs if program.type == _PT_DYNAMIC), None)
    if dynamic is None:
        return Elf(ident.machine, interpreter, (), ())
    entries = _dynamic(data, dynamic.offset, dynamic.file_size, Dynamic64 if wide else Dynamic32)
    table = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if table is None:
        return Elf(ident.machine, interpreter, (), ())
    strings = in_file(table)
    needed = tuple(_string(data, strings + value) for tag, value in entries if tag == _DT_NEEDED)
    paths = [value for tag, value in entries if tag == _DT_RUNPATH] or [
        value for tag, value in entries if tag == _DT_RPATH
    ]
    runpath = tuple(part for value in paths[:1] for part in _string(data, strings + value).split(":") if part)
    return Elf(ident.machine, interpreter, needed, runpath)


def _dynamic(data: bytes, offset: int, size: int, record: type[Dynamic64 | Dynamic32]) -> list[tuple[int, int]]:
    count = size // record.layout().size
    if count > MAX_DYNAMIC:
        raise LimitError(f"an ELF file with {count} dynamic entries, at most {MAX_DYNAMIC} are read")
    entries = []
    for index in range(count):
        entry = record.unpack(data, offset + index * record.layout().size)
        if entry.tag == _DT_NULL:
            break
        entries.append((entry.tag, entry.value))
    return entries


def _string(data: bytes, offset: int) -> str:
    end = data.find(b"\0", offset, offset + MAX_STRING) if offset < len(data) else -1
    if end < 0:
        raise FormatError("an ELF file with a string that does not end")
    try:
        return data[offset:end].decode()
    except UnicodeDecodeError as error:
        raise FormatError("an ELF file with a name that is not UTF-8") from error
