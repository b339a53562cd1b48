"""How much room things take on a partition before there is one: the arithmetic of mke2fs and mkfs.vfat."""

from collections.abc import Iterable, Sequence
from typing import Final

from oci2boot.formats.ext4 import backup_groups, is_backup_group
from oci2boot.target.entries import EspFile, source_size
from oci2boot.target.nodes import BLOCK, FIRST_INODE, INODE_SIZE, Node

MIB: Final = 1 << 20

_BLOCKS_PER_GROUP: Final = 8 * BLOCK
_DESCRIPTOR_SIZE: Final = 64
_BYTES_PER_INODE: Final = 16384
"""mke2fs' own default ratio."""
_SPARE_INODES: Final = 1024
_SLACK_BLOCKS: Final = 64
"""lost+found, the resize inode's and the journal's own blocks."""

FAT_CLUSTER: Final = 4096
FAT32_CLUSTERS_MIN: Final = 65525
"""Fewer would make it FAT16 for a reader that goes by the count, as the specification says."""
_FAT_RESERVED: Final = 32
"""Sectors before the first table."""
_DIRECTORY_SLOT: Final = 32
_SLOT_CHARACTERS: Final = 13


def journal_mib(blocks: int) -> int:
    """Return the journal's size; it has to serve the disk that the root grows to, so it is not small."""
    return 64 if blocks * BLOCK >= 1 << 30 else 16


def inode_count(blocks: int, nodes: int) -> int:
    """Return how many inodes to ask mke2fs for: its own ratio, or a quarter more than what is there already."""
    return max(blocks * BLOCK // _BYTES_PER_INODE, nodes + nodes // 4 + _SPARE_INODES + FIRST_INODE)


def ext4_capacity(blocks: int, nodes: int) -> int:
    """Return how many blocks files and directories may take on an ext4 file system of `blocks` blocks.

    Follows ext2fs_initialize() of e2fsprogs 1.47, which also drops a last group too small for its own tables.
    """
    while True:
        groups = -(-blocks // _BLOCKS_PER_GROUP)
        if groups == 0:
            return 0
        descriptors = -(-groups * _DESCRIPTOR_SIZE // BLOCK)
        growable = min(blocks * 1024, 0xFFFFFFFF) // _BLOCKS_PER_GROUP + 1
        reserved = min(-(-growable * _DESCRIPTOR_SIZE // BLOCK) - descriptors, BLOCK // 4)
        backup = 1 + descriptors + max(reserved, 0)
        inodes = -(-inode_count(blocks, nodes) // groups)
        if inodes > 8 * BLOCK:
            return 0
        tables = 2 + -(-inodes * INODE_SIZE // BLOCK)
        rest = blocks % _BLOCKS_PER_GROUP
        if rest and rest < tables + (backup if is_backup_group(groups - 1) else 0) + 50:
            blocks -= rest
            continue
        free = blocks - groups * tables - backup_groups(groups) * backup - _SLACK_BLOCKS
        journal = journal_mib(blocks) * MIB // BLOCK
        return free - journal if free >= 2 * journal else 0  # mke2fs wants a journal to be half of the rest at most


def ext4_needed(nodes: Sequence[Node]) -> int:
    """Return the blocks that the content takes, extent trees included."""
    blocks = sum(node.blocks for node in nodes)
    # A tree block maps 340 extents, and a file is cut once for each group that it passes.
    return blocks + sum(
        1 + node.blocks // (64 * _BLOCKS_PER_GROUP) for node in nodes if node.blocks > _BLOCKS_PER_GROUP
    )


def ext4_minimum(nodes: Sequence[Node], free: int) -> int:
    """Return the blocks of the smallest file system that holds the content and `free` blocks more."""
    needed = ext4_needed(nodes) + free
    blocks = needed
    while (capacity := ext4_capacity(blocks, len(nodes))) < needed:
        blocks += max(needed - capacity, MIB // BLOCK)
    return blocks


def fat_needed(files: Iterable[EspFile], cluster: int = FAT_CLUSTER) -> int:
    """Return the bytes that the files and their directories take on a FAT32 partition, in whole clusters."""
    slots = {"": 2}  # the volume label, and what ends the directory
    total = 0
    for file in files:
        total += _whole(source_size(file.source), cluster)
        parts = file.path.split("/")
        for depth, name in enumerate(parts):
            path = "/".join(parts[: depth + 1])
            if path in slots:
                continue
            slots["/".join(parts[:depth])] += 1 + -(-len(name) // _SLOT_CHARACTERS)
            if depth < len(parts) - 1:
                slots[path] = 3  # with its own two dots
    return total + sum(_whole(count * _DIRECTORY_SLOT, cluster) for count in slots.values())


def fat_capacity(size: int, sector: int = 512, cluster: int = FAT_CLUSTER) -> int:
    """Return the bytes in whole clusters of a FAT32 partition of `size` bytes; 0 where FAT32 cannot be so small."""
    clusters = (size - _FAT_RESERVED * sector) // (cluster + 8)
    clusters -= clusters and 2  # both tables end on a whole cluster
    return clusters * cluster if clusters >= FAT32_CLUSTERS_MIN else 0


def fat_minimum(needed: int, sector: int = 512, cluster: int = FAT_CLUSTER) -> int:
    """Return the size of the smallest FAT32 partition, in whole MiB, that has this capacity."""
    clusters = max(needed // cluster, FAT32_CLUSTERS_MIN) + 2
    return _whole(clusters * (cluster + 8) + _FAT_RESERVED * sector + cluster, MIB)


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def in_mib(size: int) -> str:
    """Return a size that is enough, as people write it."""
    return f"{-(-size // MIB)}M"
