"""Where every inode and block of a root partition goes: the pure half of filling an empty ext4 file system.

mke2fs makes the file system (geometry, journal, room to grow); this adds inodes to it as mke2fs -d would, but with any
owner, mode, attribute, device number and fs-verity metadata, and without a staged copy. Blocks are given out in disk
order, so that what was given out is always a prefix of what was free, and nothing is fragmented.
"""

import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from oci2boot.errors import FormatError, TargetError
from oci2boot.formats import ext4
from oci2boot.formats.ext4 import Extent, ExtentIndex, ExtentLeaf, GroupDescriptor, Inode
from oci2boot.formats.ext4_blocks import directory_blocks, extent_node, extents_per_block
from oci2boot.formats.ext4_reader import Ext4
from oci2boot.formats.ext4_xattr import seal_xattr_block
from oci2boot.target.nodes import BLOCK, FIRST_INODE, INODE_SIZE, LOST_FOUND_INODE, Node

_SECTORS: Final = BLOCK // 512
_VERITY_ALIGNMENT: Final = ext4.VERITY_ALIGNMENT // BLOCK


class Run(NamedTuple):
    """Adjacent blocks of the file system."""

    start: int
    length: int


class Write(NamedTuple):
    """Bytes for one place; `offset` is in bytes from the start of the file system."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PlacedFile:
    """A regular file and the blocks for its data followed by its fs-verity metadata."""

    node: Node
    runs: Sequence[Run]


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    files: Sequence[PlacedFile]
    writes: Sequence[Write]


class _Body(NamedTuple):
    """The fields of an inode that tell of its content."""

    flags: int
    size: int
    block: bytes
    sectors: int


class _Allocator:
    """Gives out the free blocks of an empty file system in disk order."""

    def __init__(self, empty: Ext4) -> None:
        self._empty = empty
        self._runs = self._free_runs()
        self._run = Run(0, 0)
        self.taken: list[Run] = []
        """Adjacent runs joined."""

    def take(self, count: int) -> list[Run]:
        runs: list[Run] = []
        while count:
            if not self._run.length:
                self._run = next(self._runs, Run(0, 0))
                if not self._run.length:
                    raise TargetError("the root partition is too small")
            start, length = self._run
            used = min(count, length)
            self._run = Run(start + used, length - used)
            count -= used
            _join(runs, Run(start, used))
            _join(self.taken, Run(start, used))
        return runs

    def _free_runs(self) -> Iterator[Run]:
        per_group = self._empty.superblock.blocks_per_group
        for number, group in enumerate(self._empty.groups):
            used = group_bitmap(self._empty, number)
            bits = bin(int.from_bytes(used, "little") | 1 << per_group)[:2:-1]
            free = [Run(number * per_group + match.start(), len(match[0])) for match in re.finditer("0+", bits)]
            if sum(run.length for run in free) != group.free_blocks:
                raise FormatError(f"block group {number} contradicts its bitmap")
            yield from free


def by_group(runs: Iterable[Run], per_group: int) -> dict[int, int]:
    """Return for each block group the runs' blocks in it, as the bits of its bitmap."""
    counts: dict[int, int] = {}
    for start, length in runs:
        end = start + length
        while start < end:
            group = start // per_group
            stop = min(end, (group + 1) * per_group)
            counts[group] = counts.get(group, 0) | ((1 << stop - start) - 1) << start % per_group
            start = stop
    return counts


def _join(runs: list[Run], run: Run) -> None:
    if runs and runs[-1].start + runs[-1].length == run.start:
        runs[-1] = Run(runs[-1].start, runs[-1].length + run.length)
    else:
        runs.append(run)


def group_bitmap(fs: Ext4, number: int) -> bytes:
    """Return the block bitmap of a group, also where mke2fs left it to be computed."""
    group, superblock = fs.groups[number], fs.superblock
    if not group.flags & ext4.GROUP_BLOCK_UNINIT:
        return fs.blocks(group.block_bitmap)
    used = 0
    if superblock.has_backup(number):
        descriptors = -(-superblock.group_count * superblock.descriptor_size // BLOCK)
        used = 1 + descriptors + superblock.reserved_gdt_blocks
    return ((1 << used) - 1).to_bytes(BLOCK, "little")


class _Builder:
    def __init__(self, empty: Ext4, epoch: int, *, blank: bool) -> None:
        self.empty = empty
        self.epoch = epoch
        self.blank = blank
        self.allocator = _Allocator(empty)
        self.writes: list[Write] = []
        self.files: list[PlacedFile] = []
        self.inodes: dict[int, bytes] = {}

    def block_write(self, block: int, data: bytes) -> None:
        self.writes.append(Write(block * BLOCK, data))

    def add(self, node: Node) -> None:
        seed = ext4.inode_seed(self.empty.seed, node.number)
        body = self.body(node, seed)
        xattr_block = 0
        if node.xattr_block:
            [run] = self.allocator.take(1)
            xattr_block, body = run.start, body._replace(sectors=body.sectors + _SECTORS)
            self.block_write(xattr_block, seal_xattr_block(node.xattr_block, self.empty.seed, xattr_block))
        inode = self.encode(node, body, xattr_block)
        self.inodes[node.number] = ext4.seal_inode(seed, inode.pack() + node.in_inode)

    def body(self, node: Node, seed: int) -> _Body:
        entry = node.entry
        match entry.kind:
            case stat.S_IFDIR if node.number == LOST_FOUND_INODE:
                made = self.empty.inode(node.number)
                return _Body(made.flags, made.size, made.block, made.sectors_lo)
            case stat.S_IFDIR:
                data = directory_blocks(node.number, node.parent, node.names, seed, BLOCK)
                runs = self.place(data, self.root_runs(node) if node.number == ext4.ROOT_INODE else [])
                return _Body(ext4.FLAG_EXTENTS, len(data), *self.map(_extents(runs, node.data_blocks, 0), seed))
            case stat.S_IFREG:
                runs = self.allocator.take(node.data_blocks + node.verity_blocks)
                self.files.append(PlacedFile(node, runs))
                extents = _extents(runs, node.data_blocks, -node.data_blocks % _VERITY_ALIGNMENT)
                flags = ext4.FLAG_EXTENTS | (ext4.FLAG_VERITY if entry.verity else 0)
                return _Body(flags, entry.size, *self.map(extents, seed))
            case stat.S_IFLNK if isinstance(entry.source, bytes):
                if not node.data_blocks:
                    return _Body(0, entry.size, entry.source.ljust(60, b"\0"), 0)
                runs = self.place(entry.source.ljust(BLOCK, b"\0"), [])
                return _Body(ext4.FLAG_EXTENTS, entry.size, *self.map(_extents(runs, 1, 0), seed))
            case stat.S_IFCHR | stat.S_IFBLK:
                return _Body(0, 0, _device(entry.rdev), 0)
        return _Body(0, 0, bytes(60), 0)

    def root_runs(self, node: Node) -> list[Run]:
        """Return the blocks of the root directory: those that mke2fs gave it, and what it needs beyond."""
        made = [Run(extent.physical, extent.length) for extent in self.empty.extents(node.number)]
        if made != [Run(made[0].start, 1)]:
            raise FormatError("the empty file system's root directory is not one block")
        return made + self.allocator.take(node.data_blocks - 1)

    def place(self, data: bytes, runs: list[Run]) -> list[Run]:
        """Have the data written to the runs, or else to new ones."""
        runs = runs or self.allocator.take(len(data) // BLOCK)
        at = 0
        for run in runs:
            self.block_write(run.start, data[at : at + run.length * BLOCK])
            at += run.length * BLOCK
        return runs

    def map(self, extents: list[Extent], seed: int) -> tuple[bytes, int]:
        """Return (i_block, 512-byte sectors in use) for the extents; a deeper tree gets blocks of its own."""
        blocks = sum(extent.length for extent in extents)
        level: list[ExtentLeaf | ExtentIndex] = [
            ExtentLeaf(one.logical, one.length, one.physical >> 32, one.physical & 0xFFFFFFFF) for one in extents
        ]
        depth = 0
        fan_out = extents_per_block(BLOCK)
        while len(level) > ext4.EXTENTS_IN_INODE:
            above: list[ExtentLeaf | ExtentIndex] = []
            for at in range(0, len(level), fan_out):
                [run] = self.allocator.take(1)
                body = extent_node(level[at : at + fan_out], depth, fan_out)
                self.block_write(run.start, body + ext4.crc32c(seed, body).to_bytes(4, "little"))
                above.append(ExtentIndex(level[at].logical, run.start & 0xFFFFFFFF, run.start >> 32, 0))
                blocks += 1
            level, depth = above, depth + 1
        return extent_node(level, depth, ext4.EXTENTS_IN_INODE), blocks * _SECTORS

    def encode(self, node: Node, body: _Body, xattr_block: int) -> Inode:
        meta, now = node.entry.meta, self.epoch
        mtime, mtime_extra = ext4.time_fields(meta.mtime, meta.mtime_nsec)
        other, other_extra = ext4.time_fields(now)
        return Inode(
            mode=node.entry.kind | meta.mode,
            uid_lo=meta.uid & 0xFFFF,
            size_lo=body.size & 0xFFFFFFFF,
            atime=other,
            ctime=other,
            mtime=mtime,
            dtime=0,
            gid_lo=meta.gid & 0xFFFF,
            links=node.links,
            sectors_lo=body.sectors & 0xFFFFFFFF,
            flags=body.flags,
            version_lo=0,
            block=body.block,
            generation=0,
            xattr_block_lo=xattr_block & 0xFFFFFFFF,
            size_hi=body.size >> 32,
            fragment=0,
            sectors_hi=body.sectors >> 32,
            xattr_block_hi=xattr_block >> 32,
            uid_hi=meta.uid >> 16,
            gid_hi=meta.gid >> 16,
            checksum_lo=0,
            reserved=0,
            extra_size=ext4.INODE_FIXED - 128,
            checksum_hi=0,
            ctime_extra=other_extra,
            mtime_extra=mtime_extra,
            atime_extra=other_extra,
            crtime=other,
            crtime_extra=other_extra,
            version_hi=0,
            project=0,
        )

    def write_inodes(self) -> None:
        per_group = self.empty.superblock.inodes_per_group
        tables = [group.inode_table for group in self.empty.groups]
        if max(self.inodes) > per_group * len(tables):
            raise TargetError("the root partition has too few inodes")
        pending: list[bytes] = []
        start = previous = -1
        for number in sorted(self.inodes):
            if number != previous + 1 or (number - 1) % per_group == 0:
                self.writes.append(Write(start, b"".join(pending)))
                group, index = divmod(number - 1, per_group)
                start, pending = tables[group] * BLOCK + index * INODE_SIZE, []
            pending.append(self.inodes[number])
            previous = number
        self.writes.append(Write(start, b"".join(pending)))

    def write_groups(self, nodes: Sequence[Node]) -> None:
        """Account for what was given out: bitmaps, group descriptors, superblock."""
        superblock, seed = self.empty.superblock, self.empty.seed
        blocks_per_group, inodes_per_group = superblock.blocks_per_group, superblock.inodes_per_group
        groups = self.empty.groups
        taken = by_group(self.allocator.taken, blocks_per_group)
        directories: dict[int, int] = {}
        for node in nodes:
            if node.entry.kind == stat.S_IFDIR:
                group = (node.number - 1) // inodes_per_group
                directories[group] = directories.get(group, 0) + 1
        last_inode = max(node.number for node in nodes)
        packed = []
        for number, descriptor in enumerate(groups):
            used = min(max(last_inode - number * inodes_per_group, 0), inodes_per_group)
            # Where every inode table is zero, the kernel does not clear it again.
            zeroed = ext4.GROUP_INODE_ZEROED if self.blank or used else 0
            changed = replace(descriptor, flags=descriptor.flags & ~ext4.GROUP_INODE_ZEROED | zeroed)
            if number in taken:
                changed = self.account_blocks(changed, number, taken[number])
            if used:
                changed = self.account_inodes(changed, used, directories.get(number, 0))
            packed.append(changed.sealed(seed, number).pack())
        self.block_write(superblock.first_data_block + 1, b"".join(packed))
        blocks = sum(run.length for run in self.allocator.taken)
        free = superblock.free_blocks - blocks
        self.writes.append(
            Write(
                ext4.SUPERBLOCK_OFFSET,
                replace(
                    superblock,
                    free_blocks_lo=free & 0xFFFFFFFF,
                    free_blocks_hi=free >> 32,
                    free_inodes=superblock.inodes_count - last_inode,
                )
                .sealed()
                .pack(),
            )
        )

    def account_blocks(self, group: GroupDescriptor, number: int, taken: int) -> GroupDescriptor:
        bitmap = (int.from_bytes(group_bitmap(self.empty, number), "little") | taken).to_bytes(BLOCK, "little")
        self.block_write(group.block_bitmap, bitmap)
        checksum = ext4.crc32c(self.empty.seed, bitmap[: self.empty.superblock.blocks_per_group // 8])
        free = group.free_blocks - taken.bit_count()
        return replace(
            group,
            flags=group.flags & ~ext4.GROUP_BLOCK_UNINIT,
            free_blocks_lo=free & 0xFFFF,
            free_blocks_hi=free >> 16,
            block_bitmap_checksum_lo=checksum & 0xFFFF,
            block_bitmap_checksum_hi=checksum >> 16,
        )

    def account_inodes(self, group: GroupDescriptor, used: int, directories: int) -> GroupDescriptor:
        per_group = self.empty.superblock.inodes_per_group
        bitmap = (((1 << 8 * BLOCK) - (1 << per_group)) | ((1 << used) - 1)).to_bytes(BLOCK, "little")
        self.block_write(group.inode_bitmap, bitmap)
        checksum = ext4.crc32c(self.empty.seed, bitmap[: per_group // 8])
        free = per_group - used
        return replace(
            group,
            flags=group.flags & ~ext4.GROUP_INODE_UNINIT,
            free_inodes_lo=free,
            unused_inodes_lo=free,
            directories_lo=directories,
            inode_bitmap_checksum_lo=checksum & 0xFFFF,
            inode_bitmap_checksum_hi=checksum >> 16,
        )


def _extents(runs: Sequence[Run], data_blocks: int, gap: int) -> list[Extent]:
    """Return the extents of a file on these runs; `gap` blocks of hole follow the first `data_blocks`."""
    extents: list[Extent] = []
    logical = 0
    for start, length in runs:
        while length:
            bound = data_blocks if logical < data_blocks else logical + length
            used = min(length, ext4.EXTENT_MAX_LENGTH, bound - logical)
            extents.append(Extent(logical + (gap if logical >= data_blocks else 0), start, used))
            logical, start, length = logical + used, start + used, length - used
    return extents


def _device(rdev: int) -> bytes:
    """Return i_block of a device: the old 16-bit encoding where it can say it. ext4_set_inode_dev()."""
    major, minor = rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00
    if major < 256 and minor < 256:
        return (major << 8 | minor).to_bytes(4, "little").ljust(60, b"\0")
    return (bytes(4) + rdev.to_bytes(4, "little")).ljust(60, b"\0")


def place(empty: Ext4, nodes: Sequence[Node], epoch: int, *, blank: bool) -> Placement:
    """Place the inodes on a file system that mke2fs has just made; `epoch` becomes every time but mtime.

    `blank` says that whatever is not written is zero; else only inode tables with an inode in use have to be written.
    """
    superblock = empty.superblock
    made = (superblock.block_size, superblock.inode_size, superblock.inodes_count - superblock.free_inodes)
    if made != (BLOCK, INODE_SIZE, FIRST_INODE - 1):
        raise FormatError("mke2fs made another file system than it was asked for")
    builder = _Builder(empty, epoch, blank=blank)
    # Directories first: the kernel then reads them in one go.
    for node in sorted(nodes, key=lambda node: (node.entry.kind != stat.S_IFDIR, node.entry.path)):
        builder.add(node)
    builder.write_inodes()
    builder.write_groups(nodes)
    return Placement(builder.files, [write for write in builder.writes if write.data])
