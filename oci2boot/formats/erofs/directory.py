"""Directory content in EROFS: blocks of entries, each followed by their names. Linux, fs/erofs/dir.c and namei.c."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from oci2boot.errors import FormatError
from oci2boot.formats.erofs.structs import BLOCK, DirectoryEntry

ENTRY_SIZE: Final = DirectoryEntry.layout().size
NAME_MAX: Final = 255
_TAIL_MAX: Final = 2048
"""mkcomposefs and composefs-rs give a longer tail a block of its own."""

_pack = DirectoryEntry.layout().pack
_iter_unpack = DirectoryEntry.layout().iter_unpack


def split(names: Sequence[bytes]) -> tuple[list[int], int]:
    """Return where each block of entries ends in `names`, and the size in bytes of the tail after them (0 for none)."""
    total = ENTRY_SIZE * len(names) + sum(map(len, names))
    if total <= _TAIL_MAX:
        return [], total
    ends: list[int] = []
    used = 0
    for at, name in enumerate(names):
        used += ENTRY_SIZE + len(name)
        if used > BLOCK:
            ends.append(at)
            used = ENTRY_SIZE + len(name)
    if used > _TAIL_MAX:
        ends.append(len(names))
        used = 0
    return ends, used


def pack(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """Return one block, unpadded, or the tail."""
    nameoff = ENTRY_SIZE * len(names)
    entries = []
    for name, nid, file_type in zip(names, nids, types, strict=True):
        entries.append(_pack(nid, nameoff, file_type, 0))
        nameoff += len(name)
    return b"".join(entries) + b"".join(names)


def unpack(block: bytes) -> list[tuple[bytes, int, int]]:
    """Return (name, nid, file type) of each entry of one block or tail; the last name may have zeros after it."""
    head = int.from_bytes(block[8:10], "little")
    if head % ENTRY_SIZE or not ENTRY_SIZE <= head <= len(block):
        raise FormatError(f"a directory block has its first name at byte {head}")
    entries = list(_iter_unpack(block[:head]))
    ends = [nameoff for _, nameoff, _, _ in entries[1:]]
    last = block.find(b"\0", entries[-1][1])
    ends.append(len(block) if last < 0 else last)
    if any(a >= b for a, b in pairwise([head, *ends])) or any(block[ends[-1] :]):
        raise FormatError("a directory block has names that overlap or lie outside of it")
    found = []
    for (nid, nameoff, file_type, _), end in zip(entries, ends, strict=True):
        name = block[nameoff:end]
        if len(name) > NAME_MAX or b"/" in name or b"\0" in name:
            raise FormatError(f"not a file name: {name[:300]!r}")
        found.append((name, nid, file_type))
    return found
