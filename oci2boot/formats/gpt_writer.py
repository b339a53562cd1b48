"""GUID partition tables, made: the same bytes as sfdisk's for the same request. UEFI 2.10, sections 5.2.3 and 5.3.2."""

import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from oci2boot.errors import FormatError
from oci2boot.formats.gpt import Copy, Entry, Header, Partition, Read, read_copies

ENTRIES: Final = 128
ENTRY_SIZE: Final = 128
_REVISION: Final = 0x10000
_ALIGNMENT: Final = 1 << 20
"""In bytes, of the first partition: what every tool leaves room for."""
NAME_MAX: Final = 36
"""UTF-16 code units."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a partition is found by, its place and size left out."""

    guid: str
    name: str
    attributes: int


def pack_gpt(guid: str, partitions: Sequence[Partition], size: int, sector: int) -> tuple[bytes, bytes]:
    """Return what a disk of `size` bytes begins with, and what it ends with; sectors are of `sector` bytes."""
    entries = bytearray(ENTRIES * ENTRY_SIZE)
    for part in partitions:
        entry = Entry(
            type_guid=uuid.UUID(part.type).bytes_le,
            guid=uuid.UUID(part.guid).bytes_le,
            first_lba=part.start // sector,
            last_lba=(part.start + part.size) // sector - 1,
            attributes=part.attributes,
            name=part.name.encode("utf-16-le").ljust(72, b"\0"),
        )
        entries[(part.number - 1) * ENTRY_SIZE : part.number * ENTRY_SIZE] = entry.pack()
    sectors = size // sector
    taken = len(entries) // sector
    primary = Header(
        signature=b"EFI PART",
        revision=_REVISION,
        header_size=Header.layout().size,
        header_crc=0,
        reserved=0,
        own_lba=1,
        other_lba=sectors - 1,
        first_usable_lba=_ALIGNMENT // sector,
        last_usable_lba=sectors - taken - 2,
        disk_guid=uuid.UUID(guid).bytes_le,
        entries_lba=2,
        entries_count=ENTRIES,
        entry_size=ENTRY_SIZE,
        entries_crc=zlib.crc32(entries),
    )
    backup = replace(primary, own_lba=sectors - 1, other_lba=1, entries_lba=sectors - 1 - taken)
    head = _protective_mbr(sectors).ljust(sector, b"\0") + _sealed(primary).ljust(sector, b"\0") + bytes(entries)
    return head, bytes(entries) + _sealed(backup).ljust(sector, b"\0")


def _sealed(header: Header) -> bytes:
    return replace(header, header_crc=zlib.crc32(header.pack())).pack()


def _protective_mbr(sectors: int) -> bytes:
    record = (
        b"\0\0\x02\0\xee\xff\xff\xff" + (1).to_bytes(4, "little") + min(sectors - 1, 0xFFFFFFFF).to_bytes(4, "little")
    )
    return bytes(446) + record + bytes(48) + b"\x55\xaa"


def plan_identities(read: Read, size: int, identities: Mapping[int, Identity]) -> list[tuple[int, bytes]]:
    """Return what to write to rename partitions, by number: offsets and bytes.

    Each must be on the disk before the next is written: then one of the two tables is whole at every moment.
    """
    copies, sector = read_copies(read, size)
    primary = copies.get("primary")
    copy = primary or copies.get("backup")
    if copy is None:
        raise FormatError("no GUID partition table", hint="is it a whole disk?")
    header, entries = copy.header, bytearray(copy.entries)
    for number, identity in identities.items():
        entries[slice(*_place(header, number))] = _renamed(copy, number, identity)
    lba, entries_lba = _counterpart(
        copy, copies.get("backup") if primary else None, len(entries) // sector, size // sector
    )
    counterpart = replace(header, own_lba=lba, other_lba=header.own_lba, entries_lba=entries_lba)
    crc = zlib.crc32(entries)
    return [
        *_table(counterpart, bytes(entries), crc, sector),
        *_table(header, bytes(entries), crc, sector),
    ]


def _counterpart(found: Copy, backup: Copy | None, sectors: int, end: int) -> tuple[int, int]:
    """Return where the other header and its entries are, or have to be, in sectors.

    The entries take `sectors`, the disk has `end`.
    """
    header = found.header
    if header.own_lba != 1:
        lba, entries_lba, fits = 1, 2, 2 + sectors <= header.first_usable_lba
    else:
        lba = header.other_lba
        known = backup and backup.header.own_lba == lba
        entries_lba = backup.header.entries_lba if backup and known else lba - sectors
        fits = header.last_usable_lba < entries_lba <= lba - sectors < end - sectors
    if not fits:
        raise FormatError("the partition table leaves no room for its copy", hint="sgdisk -v says what is wrong")
    return lba, entries_lba


def _place(header: Header, number: int) -> tuple[int, int]:
    if not 1 <= number <= header.entries_count:
        raise FormatError(f"the partition table has no partition {number}")
    return (number - 1) * header.entry_size, number * header.entry_size


def _renamed(found: Copy, number: int, identity: Identity) -> bytes:
    start, end = _place(found.header, number)
    name = identity.name.encode("utf-16-le")
    if len(name) > 2 * NAME_MAX:
        raise FormatError(f"a partition's name has at most {NAME_MAX} characters: {identity.name[:80]!r}")
    entry = replace(
        Entry.unpack(found.entries, start),
        guid=uuid.UUID(identity.guid).bytes_le,
        attributes=identity.attributes,
        name=name.ljust(2 * NAME_MAX, b"\0"),
    )
    return entry.pack() + found.entries[start + Entry.layout().size : end]


def _table(header: Header, entries: bytes, crc: int, sector: int) -> list[tuple[int, bytes]]:
    sealed = _sealed(replace(header, entries_crc=crc, header_crc=0, header_size=Header.layout().size))
    return [(header.entries_lba * sector, entries), (header.own_lba * sector, sealed.ljust(sector, b"\0"))]
