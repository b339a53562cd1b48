"""GUID partition tables, read and checked: both headers, both arrays of entries. UEFI 2.10, section 5.3."""

import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Final

from oci2boot.errors import FormatError
from oci2boot.formats.binary import U32, U64, Record

SECTORS: Final = (512, 4096)
"""Sizes in bytes of a disk's logical blocks: a table counts in them, and does not say which."""
ENTRIES_MAX: Final = 1024
"""Eight times what every tool writes."""
ENTRY_SIZE_MAX: Final = 1024

_SIGNATURE: Final = b"EFI PART"
_ENTRY_SIZE_MIN: Final = 128
_UNUSED: Final = bytes(16)
_MBR_SIZE: Final = 512
_PROTECTIVE: Final = 0xEE
_MBR_ENTRIES: Final = range(446, 510, 16)

Read = Callable[[int, int], bytes]
"""(byte offset, size) to the bytes there, fewer only past the end."""


@dataclass(frozen=True, slots=True)
class Header(Record):
    signature: Annotated[bytes, "8s"]
    revision: U32
    header_size: U32
    header_crc: U32
    reserved: U32
    own_lba: U64
    other_lba: U64
    first_usable_lba: U64
    last_usable_lba: U64
    disk_guid: Annotated[bytes, "16s"]
    entries_lba: U64
    entries_count: U32
    entry_size: U32
    entries_crc: U32


@dataclass(frozen=True, slots=True)
class Entry(Record):
    type_guid: Annotated[bytes, "16s"]
    guid: Annotated[bytes, "16s"]
    first_lba: U64
    last_lba: U64  # inclusive
    attributes: U64
    name: Annotated[bytes, "72s"]  # UTF-16LE, padded with zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition within the disk: `start` and `size` are in bytes."""

    number: int
    type: str
    guid: str
    start: int
    size: int
    attributes: int
    name: str


@dataclass(frozen=True, slots=True)
class Gpt:
    guid: str
    partitions: tuple[Partition, ...]
    """In order of number; those that cannot be are left out."""
    problems: tuple[str, ...]
    """What an intact table would not have, a sentence each."""
    sector: int = 512
    """Bytes of a logical block, as the table's place tells."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One of the two tables."""

    header: Header
    entries: bytes


def read_gpt(read: Read, size: int) -> Gpt:
    """Read the table of a disk of `size` bytes; damage is told in `problems` as long as one copy can be read."""
    problems = _mbr_problems(read(0, _MBR_SIZE))
    copies, sector = read_copies(read, size, problems)
    if not copies:
        raise FormatError(f"no GUID partition table: {'; '.join(problems)}", hint="is it a whole disk?")
    if len(copies) == 2:
        problems += _disagreements(copies["primary"], copies["backup"])
    copy = copies.get("primary") or copies["backup"]
    partitions, wrong = _partitions(copy, size, sector)
    return Gpt(_guid(copy.header.disk_guid), partitions, (*problems, *wrong), sector)


def read_copies(read: Read, size: int, problems: list[str] | None = None) -> tuple[dict[str, Copy], int]:
    """Return the tables that are whole, `primary` and `backup`, and the bytes of a sector; add why another is not."""
    sector = _sector_size(read, size)
    copies: dict[str, Copy] = {}
    for name, lba in (("primary", 1), ("backup", size // sector - 1)):
        try:
            copies[name] = _read_copy(read, size, lba, sector)
        except FormatError as error:
            if problems is not None:
                problems.append(f"the {name} table: {error.message}")
    return copies, sector


def _sector_size(read: Read, size: int) -> int:
    """Return the size with which a header is where one has to be; the primary one tells before the backup."""
    places = [(sector, sector) for sector in SECTORS] + [
        (size // sector * sector - sector, sector) for sector in SECTORS
    ]
    return next((sector for at, sector in places if at > 0 and read(at, len(_SIGNATURE)) == _SIGNATURE), SECTORS[0])


def _read_copy(read: Read, size: int, lba: int, sector: int) -> Copy:
    raw = read(lba * sector, sector) if lba > 0 else b""
    header = Header.unpack(raw)
    if header.signature != _SIGNATURE:
        raise FormatError("its header is not there")
    if not Header.layout().size <= header.header_size <= sector:
        raise FormatError(f"its header claims to have {header.header_size} bytes")
    blank = replace(header, header_crc=0).pack() + raw[Header.layout().size : header.header_size]
    if zlib.crc32(blank) != header.header_crc:
        raise FormatError("the checksum of its header is wrong")
    if header.own_lba != lba:
        raise FormatError(f"its header says that it lies in sector {header.own_lba}, it lies in {lba}")
    length = header.entries_count * header.entry_size
    if (
        header.entries_count > ENTRIES_MAX
        or not _ENTRY_SIZE_MIN <= header.entry_size <= ENTRY_SIZE_MAX
        or header.entry_size % _ENTRY_SIZE_MIN
    ):
        raise FormatError(f"it claims to have {header.entries_count} entries of {header.entry_size} bytes")
    start = header.entries_lba * sector
    entries = read(start, length) if start + length <= size else b""
    if len(entries) != length:
        raise FormatError("its entries lie outside of the disk")
    if zlib.crc32(entries) != header.entries_crc:
        raise FormatError("the checksum of its entries is wrong")
    return Copy(header, entries)


def _mbr_problems(sector: bytes) -> list[str]:
    kinds = [sector[at + 4] for at in _MBR_ENTRIES] if len(sector) == _MBR_SIZE else []
    if sector[510:] != b"\x55\xaa" or _PROTECTIVE not in kinds:
        return ["there is no protective MBR"]
    return [] if kinds.count(0) == 3 else ["the MBR names partitions of its own besides the protective one"]


def _disagreements(primary: Copy, backup: Copy) -> list[str]:
    first, second = primary.header, backup.header
    problems = []
    if first.other_lba != second.own_lba or second.other_lba != first.own_lba:
        problems.append("the two tables do not name each other")
    if primary.entries != backup.entries:
        problems.append("the two tables have different entries")
    moved = replace(
        second,
        header_crc=first.header_crc,
        own_lba=first.own_lba,
        other_lba=first.other_lba,
        entries_lba=first.entries_lba,
    )
    if moved != first:
        problems.append("the two tables have different headers")
    return problems


def _partitions(copy: Copy, size: int, sector: int) -> tuple[tuple[Partition, ...], list[str]]:
    header = copy.header
    partitions: list[Partition] = []
    problems: list[str] = []
    for index in range(header.entries_count):
        entry = Entry.unpack(copy.entries, index * header.entry_size)
        if entry.type_guid == _UNUSED:
            continue
        number = index + 1
        if not header.first_usable_lba <= entry.first_lba <= entry.last_lba <= header.last_usable_lba:
            problems.append(f"partition {number} lies outside of the room for partitions")
        if not entry.first_lba <= entry.last_lba < size // sector:
            problems.append(f"partition {number} lies outside of the disk")
            continue
        partitions.append(
            Partition(
                number=number,
                type=_guid(entry.type_guid),
                guid=_guid(entry.guid),
                start=entry.first_lba * sector,
                size=(entry.last_lba + 1 - entry.first_lba) * sector,
                attributes=entry.attributes,
                name=entry.name.decode("utf-16-le", "replace").partition("\0")[0],
            )
        )
    return tuple(partitions), problems + _collisions(partitions)


def _collisions(partitions: Sequence[Partition]) -> list[str]:
    problems = [
        f"partitions {first.number} and {second.number} overlap"
        for first, second in pairwise(sorted(partitions, key=lambda part: part.start))
        if first.start + first.size > second.start
    ]
    if len({part.guid for part in partitions}) < len(partitions):
        problems.append("two partitions have the same GUID")
    return problems


def _guid(raw: bytes) -> str:
    return str(uuid.UUID(bytes_le=raw))
