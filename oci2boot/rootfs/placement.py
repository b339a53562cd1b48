"""Third step of a composefs image: where each inode and its data go.

The two layouts differ in what they keep from crossing a block; the arithmetic is each tool's own, to the byte.
"""

import stat
from typing import Final

from oci2boot.formats.erofs import directory
from oci2boot.formats.erofs.structs import (
    BLOCK,
    CHUNK_BASED,
    FILE_TYPES,
    FLAT_INLINE,
    FLAT_PLAIN,
    INODES_OFFSET,
    SLOT,
    CompactInode,
    ExtendedInode,
)
from oci2boot.rootfs.inodes import Node

REGULAR: Final = FILE_TYPES[stat.S_IFREG]
DIRECTORY: Final = FILE_TYPES[stat.S_IFDIR]
SYMLINK: Final = FILE_TYPES[stat.S_IFLNK]

_COMPACT: Final = CompactInode.layout().size
_EXTENDED: Final = ExtendedInode.layout().size
_BLOCK_BITS: Final = 12
_CHUNK_BITS_MAX: Final = _BLOCK_BITS + 31
_CHUNK_FORMAT_V2: Final = 31
_TAIL_MAX: Final = 2048
"""Inline content with a longer rest gets a block for it."""


def place_v1(nodes: list[Node], minimum: tuple[int, int]) -> int:
    """Place the inodes of a V0 or V1 image, whose smallest mtime is `minimum`; return the end of the last."""
    seconds, nanoseconds = minimum
    pos = INODES_OFFSET
    for node in nodes:
        _measure_v1(node)
        meta = node.meta
        node.extended = (
            meta.mtime != seconds
            or meta.mtime_nsec != nanoseconds
            or (meta.uid | meta.gid | node.nlink) >> 16 != 0
            or node.size >> 32 != 0
        )
        pos = (pos + SLOT - 1) & -SLOT
        head = (_EXTENDED if node.extended else _COMPACT) + node.area.size
        tail = node.tail
        if node.type == SYMLINK:
            # The move to a block depends on the sizes before it.
            if pos // BLOCK != (pos + head + tail - 1) // BLOCK:
                pos = (pos + BLOCK - 1) & -BLOCK
            if head + tail >= BLOCK:
                _move_to_block(node)
        elif tail:
            room = BLOCK - (pos + head) % BLOCK
            if room < tail:
                skip = (room + SLOT - 1) & -SLOT
                if tail <= BLOCK - (pos + head + skip) % BLOCK:
                    pos += skip
                else:
                    pos = (pos + BLOCK - 1) & -BLOCK
                    _move_to_block(node)
        node.nid = pos // SLOT
        pos += head + node.tail
    return pos


def _move_to_block(node: Node) -> None:
    node.blocks, node.tail = 1, 0
    if node.layout == FLAT_INLINE:
        node.layout = FLAT_PLAIN


def _measure_v1(node: Node) -> None:
    """Set how the node's content parts into blocks and a tail."""
    size = node.size
    node.layout, node.blocks, node.tail = FLAT_PLAIN, 0, 0
    if node.type == REGULAR:
        if node.digest or node.sparse:
            bits = min(max((size - 1).bit_length(), _BLOCK_BITS), _CHUNK_BITS_MAX)
            node.layout, node.u = CHUNK_BASED, bits - _BLOCK_BITS
            node.tail = 4 * -(-size >> bits)
        elif size:
            node.blocks, node.tail = divmod(size, BLOCK)
            if node.tail > _TAIL_MAX:
                node.blocks, node.tail = node.blocks + 1, 0
            if node.tail:
                node.layout = FLAT_INLINE
    elif node.type == DIRECTORY:
        _measure_directory(node)
    elif node.type == SYMLINK:
        node.layout, node.tail = FLAT_INLINE, size


def _measure_directory(node: Node) -> None:
    node.splits, node.tail = directory.split([name for name, _ in node.entries])
    node.blocks = len(node.splits)
    node.size = node.blocks * BLOCK + node.tail
    node.layout = FLAT_INLINE if node.tail else FLAT_PLAIN


def place_v2(nodes: list[Node]) -> int:
    """Place the inodes of a V2 image; return the end of the last."""
    pos = INODES_OFFSET
    for node in nodes:
        node.extended = True
        node.layout, node.blocks, node.tail = FLAT_PLAIN, 0, 0
        if node.type == DIRECTORY:
            _measure_directory(node)
        elif node.digest or node.sparse:
            node.layout, node.u = CHUNK_BASED, _CHUNK_FORMAT_V2
            node.tail = 4 if node.digest else 0
        elif node.data:
            node.layout, node.tail = FLAT_INLINE, node.size
        head = _EXTENDED + node.area.size
        if node.layout == FLAT_INLINE:
            last = pos + head - 1
            # Not the last byte of the tail but the one after it: a tail that ends with its block moves too.
            if last // BLOCK != (last + 1 + node.size % BLOCK) // BLOCK:
                pos = (pos + BLOCK - last % BLOCK + SLOT - 1) & -SLOT
        node.nid = pos // SLOT
        pos = (pos + head + node.tail + SLOT - 1) & -SLOT
    return pos
