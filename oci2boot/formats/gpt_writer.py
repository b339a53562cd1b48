"""GUID partition tables, made: the same bytes as sfdisk's for the same request. UEFI 2.10, sections 5.2.3 and 5.3.2."""

import uuid
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from oci2boot.formats.gpt import Entry, Header, Partition

ENTRIES: Final = 128
ENTRY_SIZE: Final = 128
_REVISION: Final = 0x10000
_ALIGNMENT: Final = 1 << 20
"""In bytes, of the first partition: what every tool leaves room for."""


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
