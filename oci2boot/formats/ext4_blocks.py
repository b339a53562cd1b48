"""What fills the blocks of an ext4 inode: extent trees and directories.

Linux, Documentation/filesystems/ext4/ifork.rst and directory.rst.
"""

import stat
from collections.abc import Iterable, Sequence
from typing import Final

from oci2boot.errors import FormatError
from oci2boot.formats.binary import Record
from oci2boot.formats.ext4 import EXTENT_MAGIC, ExtentHeader, crc32c


def extent_node(records: Sequence[Record], depth: int, max_entries: int) -> bytes:
    """Return one node of an extent tree; the last four bytes that a block of its own has are for the checksum."""
    header = ExtentHeader(EXTENT_MAGIC, len(records), max_entries, depth, 0)
    body = header.pack() + b"".join(record.pack() for record in records)
    return body.ljust(12 + 12 * max_entries, b"\0")


TAIL: Final = 12
"""Bytes at the end of a directory block for its checksum, in the shape of an entry."""
_TAIL_HEAD: Final = bytes((0, 0, 0, 0, TAIL, 0, 0, 0xDE))


def extents_per_block(block_size: int) -> int:
    return (block_size - 12) // 12


def directory_blocks(
    own: int, parent: int, entries: Iterable[tuple[bytes, int, int]], seed: int, block_size: int
) -> bytes:
    """Return a linear directory with checksums.

    `entries` are (name, inode, `stat.S_IFMT` bits); `seed` is the directory's `inode_seed`.
    """
    room = block_size - TAIL
    blocks: list[bytes] = []
    parts: list[bytes] = []
    used = last = 0

    def close() -> None:
        parts[-1] = parts[-1][:4] + (room - used + last).to_bytes(2, "little") + parts[-1][6:]
        body = b"".join(parts).ljust(room, b"\0")
        tail = _TAIL_HEAD + crc32c(seed, body).to_bytes(4, "little")
        blocks.append(body + tail)

    for name, number, kind in ((b".", own, stat.S_IFDIR), (b"..", parent, stat.S_IFDIR), *entries):
        length = _entry_size(name)
        if used + length > room:
            close()
            parts, used = [], 0
        head = number.to_bytes(4, "little") + length.to_bytes(2, "little") + bytes((len(name), _TYPE_NUMBER[kind]))
        parts.append((head + name).ljust(length, b"\0"))
        used += length
        last = length
    close()
    return b"".join(blocks)


_TYPE_NUMBER: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


def directory_size(names: Iterable[bytes], block_size: int) -> int:
    """Return the size that `directory_blocks` gives a directory with these names, in their order."""
    room = block_size - TAIL
    blocks, used = 1, 2 * _entry_size(b"..")
    for name in names:
        length = _entry_size(name)
        if used + length > room:
            blocks, used = blocks + 1, 0
        used += length
    return blocks * block_size


def _entry_size(name: bytes) -> int:
    return 8 + (len(name) + 3 & ~3)


def leaf_checksum(block: bytes) -> int | None:
    """Return the checksum that a directory block carries; None where it has no place for one."""
    return int.from_bytes(block[-4:], "little") if block[-TAIL:-4] == _TAIL_HEAD else None


def parse_directory_block(block: bytes) -> list[tuple[bytes, int]]:
    """Return the (name, inode) pairs of a directory block, without `.` and `..`."""
    entries = []
    at = 0
    while at < len(block):
        number = int.from_bytes(block[at : at + 4], "little")
        length = int.from_bytes(block[at + 4 : at + 6], "little")
        if length < 8 or length % 4 or at + length > len(block):
            raise FormatError(f"a directory entry has the length {length}")
        name = block[at + 8 : at + 8 + block[at + 6]]
        if 8 + block[at + 6] > length:
            raise FormatError("the name of a directory entry is longer than the entry")
        if number and name not in (b".", b".."):
            if not name or b"/" in name or b"\0" in name:
                raise FormatError(f"not a file name: {name!r}")
            entries.append((name, number))
        at += length
    return entries


def verity_tree_blocks(size: int, hash_size: int, block_size: int = 4096) -> int:
    """Return how many blocks the Merkle tree of a file of `size` bytes takes."""
    total = 0
    blocks = -(-size // block_size)
    while blocks > 1:
        blocks = -(-blocks * hash_size // block_size)
        total += blocks
    return total
