"""The structs of an ext4 file system and their checksums.

Linux, Documentation/filesystems/ext4/: super.rst, group_descr.rst, inodes.rst, ifork.rst, directory.rst, checksums.rst,
verity.rst. Only what a file system with `extent`, `64bit` and `metadata_csum` has.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Final, NamedTuple, Self

import google_crc32c

from oci2boot.formats.binary import U8, U16, U32, U64, Record

SUPERBLOCK_OFFSET: Final = 1024
MAGIC: Final = 0xEF53
ROOT_INODE: Final = 2

FILETYPE: Final = 0x2
NEEDS_RECOVERY: Final = 0x4
EXTENTS: Final = 0x40
BIT64: Final = 0x80
FLEX_BG: Final = 0x200
CSUM_SEED: Final = 0x2000
LARGE_DIR: Final = 0x4000
SPARSE_SUPER: Final = 0x1
METADATA_CSUM: Final = 0x400
VERITY: Final = 0x8000

FLAG_INDEX: Final = 0x1000
FLAG_EXTENTS: Final = 0x80000
FLAG_VERITY: Final = 0x100000

GROUP_INODE_UNINIT: Final = 0x1
GROUP_BLOCK_UNINIT: Final = 0x2
GROUP_INODE_ZEROED: Final = 0x4

EXTENT_MAGIC: Final = 0xF30A
EXTENT_MAX_LENGTH: Final = 32768
"""Blocks; a longer `ee_len` marks an extent as unwritten."""
EXTENTS_IN_INODE: Final = 4
EXTENT_DEPTH_MAX: Final = 5
FAST_SYMLINK_MAX: Final = 59
NAME_MAX: Final = 255
VERITY_ALIGNMENT: Final = 65536
"""The Merkle tree starts at the first multiple of this after the end of the data. ext4_verity_metadata_pos()."""

_TIME_MIN: Final = -(1 << 31)
_TIME_MAX: Final = (1 << 34) - (1 << 31) - 1


def crc32c(seed: int, data: bytes | memoryview) -> int:
    """ext4's CRC-32C: started from `seed`, and not inverted at the end."""
    crc: int = google_crc32c.extend(seed ^ 0xFFFFFFFF, bytes(data))
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Superblock(Record):
    inodes_count: U32
    blocks_count_lo: U32
    reserved_blocks_lo: U32
    free_blocks_lo: U32
    free_inodes: U32
    first_data_block: U32
    log_block_size: U32
    log_cluster_size: U32
    blocks_per_group: U32
    clusters_per_group: U32
    inodes_per_group: U32
    mount_time: U32
    write_time: U32
    mount_count: U16
    max_mount_count: U16
    magic: U16
    state: U16
    errors: U16
    minor_revision: U16
    last_check: U32
    check_interval: U32
    creator_os: U32
    revision: U32
    default_uid: U16
    default_gid: U16
    first_inode: U32
    inode_size: U16
    block_group: U16
    compat: U32
    incompat: U32
    ro_compat: U32
    uuid: Annotated[bytes, "16s"]
    volume_name: Annotated[bytes, "16s"]
    last_mounted: Annotated[bytes, "64s"]
    algorithms: U32
    prealloc_blocks: U8
    prealloc_dir_blocks: U8
    reserved_gdt_blocks: U16
    journal_uuid: Annotated[bytes, "16s"]
    journal_inode: U32
    journal_device: U32
    last_orphan: U32
    hash_seed: Annotated[bytes, "16s"]
    hash_version: U8
    journal_backup_type: U8
    descriptor_size: U16
    mount_options: U32
    first_meta_group: U32
    created: U32
    journal_backup: Annotated[bytes, "68s"]
    blocks_count_hi: U32
    reserved_blocks_hi: U32
    free_blocks_hi: U32
    min_extra_isize: U16
    want_extra_isize: U16
    flags: U32
    raid: Annotated[bytes, "16s"]
    log_groups_per_flex: U8
    checksum_type: U8
    encryption_level: U8
    padding: U8
    kbytes_written: U64
    snapshots_errors_quota: Annotated[bytes, "240s"]
    checksum_seed: U32
    times_hi: U32
    rest: Annotated[bytes, "388s"]
    checksum: U32

    @property
    def block_size(self) -> int:
        return 1024 << self.log_block_size

    @property
    def blocks_count(self) -> int:
        return self.blocks_count_hi << 32 | self.blocks_count_lo

    @property
    def free_blocks(self) -> int:
        return self.free_blocks_hi << 32 | self.free_blocks_lo

    @property
    def group_count(self) -> int:
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def seed(self) -> int:
        """What every other checksum starts from."""
        return self.checksum_seed if self.incompat & CSUM_SEED else crc32c(0xFFFFFFFF, self.uuid)

    def has_backup(self, group: int) -> bool:
        """Whether the group begins with a copy of the superblock and the group descriptors."""
        return not self.ro_compat & SPARSE_SUPER or is_backup_group(group)

    def sealed(self) -> Self:
        return replace(self, checksum=crc32c(0xFFFFFFFF, self.pack()[:-4]))


def _powers(base: int, below: int) -> Iterator[int]:
    power = base
    while power < below:
        yield power
        power *= base


def is_backup_group(group: int) -> bool:
    """Whether `sparse_super` puts a copy of the superblock there: groups 0 and 1, and the powers of 3, 5 and 7."""
    return group <= 1 or any(group in _powers(base, group + 1) for base in (3, 5, 7))


def backup_groups(groups: int) -> int:
    """Return how many of the first groups `is_backup_group` holds for."""
    return min(groups, 2) + sum(1 for base in (3, 5, 7) for _ in _powers(base, groups))


@dataclass(frozen=True, slots=True)
class GroupDescriptor(Record):
    block_bitmap_lo: U32
    inode_bitmap_lo: U32
    inode_table_lo: U32
    free_blocks_lo: U16
    free_inodes_lo: U16
    directories_lo: U16
    flags: U16
    exclude_bitmap_lo: U32
    block_bitmap_checksum_lo: U16
    inode_bitmap_checksum_lo: U16
    unused_inodes_lo: U16
    checksum: U16
    block_bitmap_hi: U32
    inode_bitmap_hi: U32
    inode_table_hi: U32
    free_blocks_hi: U16
    free_inodes_hi: U16
    directories_hi: U16
    unused_inodes_hi: U16
    exclude_bitmap_hi: U32
    block_bitmap_checksum_hi: U16
    inode_bitmap_checksum_hi: U16
    reserved: U32

    @property
    def block_bitmap(self) -> int:
        return self.block_bitmap_hi << 32 | self.block_bitmap_lo

    @property
    def inode_bitmap(self) -> int:
        return self.inode_bitmap_hi << 32 | self.inode_bitmap_lo

    @property
    def inode_table(self) -> int:
        return self.inode_table_hi << 32 | self.inode_table_lo

    @property
    def free_blocks(self) -> int:
        return self.free_blocks_hi << 16 | self.free_blocks_lo

    def sealed(self, seed: int, group: int) -> Self:
        plain = replace(self, checksum=0)
        return replace(plain, checksum=crc32c(crc32c(seed, group.to_bytes(4, "little")), plain.pack()) & 0xFFFF)


@dataclass(frozen=True, slots=True)
class Inode(Record):
    """The first 160 bytes of an inode; extended attributes may follow them."""

    mode: U16
    uid_lo: U16
    size_lo: U32
    atime: U32
    ctime: U32
    mtime: U32
    dtime: U32
    gid_lo: U16
    links: U16
    sectors_lo: U32
    flags: U32
    version_lo: U32
    block: Annotated[bytes, "60s"]
    generation: U32
    xattr_block_lo: U32
    size_hi: U32
    fragment: U32
    sectors_hi: U16
    xattr_block_hi: U16
    uid_hi: U16
    gid_hi: U16
    checksum_lo: U16
    reserved: U16
    extra_size: U16
    checksum_hi: U16
    ctime_extra: U32
    mtime_extra: U32
    atime_extra: U32
    crtime: U32
    crtime_extra: U32
    version_hi: U32
    project: U32

    @property
    def size(self) -> int:
        return self.size_hi << 32 | self.size_lo

    @property
    def uid(self) -> int:
        return self.uid_hi << 16 | self.uid_lo

    @property
    def gid(self) -> int:
        return self.gid_hi << 16 | self.gid_lo

    @property
    def xattr_block(self) -> int:
        return self.xattr_block_hi << 32 | self.xattr_block_lo

    @property
    def file_type(self) -> int:
        return stat.S_IFMT(self.mode)

    @property
    def has_verity(self) -> bool:
        return bool(self.flags & FLAG_VERITY)


INODE_FIXED: Final = Inode.layout().size
_CHECKSUM_LO: Final = 124
_CHECKSUM_HI: Final = 130


def time_fields(seconds: int, nanoseconds: int = 0) -> tuple[int, int]:
    """Return (low 32 bits, extra); a time that ext4 cannot hold becomes the nearest that it can, as in the kernel."""
    seconds = min(max(seconds, _TIME_MIN), _TIME_MAX)
    signed_low = (seconds & 0xFFFFFFFF) - ((seconds & 0x80000000) << 1)
    return seconds & 0xFFFFFFFF, (seconds - signed_low) >> 32 & 3 | nanoseconds << 2


def inode_seed(seed: int, number: int, generation: int = 0) -> int:
    """What the checksums of an inode, and of its directory and extent blocks, start from."""
    return crc32c(seed, number.to_bytes(4, "little") + generation.to_bytes(4, "little"))


def inode_checksum(seed: int, raw: bytes | bytearray) -> int:
    """Return the checksum of a whole inode; `seed` is its `inode_seed`."""
    plain = bytearray(raw)
    plain[_CHECKSUM_LO : _CHECKSUM_LO + 2] = plain[_CHECKSUM_HI : _CHECKSUM_HI + 2] = b"\0\0"
    return crc32c(seed, bytes(plain))


def seal_inode(seed: int, raw: bytes) -> bytes:
    """Return the inode with its checksum in place."""
    sealed = bytearray(raw)
    checksum = inode_checksum(seed, sealed)
    sealed[_CHECKSUM_LO : _CHECKSUM_LO + 2] = (checksum & 0xFFFF).to_bytes(2, "little")
    sealed[_CHECKSUM_HI : _CHECKSUM_HI + 2] = (checksum >> 16).to_bytes(2, "little")
    return bytes(sealed)


@dataclass(frozen=True, slots=True)
class ExtentHeader(Record):
    magic: U16
    entries: U16
    max_entries: U16
    depth: U16
    generation: U32


@dataclass(frozen=True, slots=True)
class ExtentLeaf(Record):
    logical: U32
    length: U16
    physical_hi: U16
    physical_lo: U32


@dataclass(frozen=True, slots=True)
class ExtentIndex(Record):
    logical: U32
    child_lo: U32
    child_hi: U16
    unused: U16


class Extent(NamedTuple):
    """A run of blocks of a file; all three count blocks."""

    logical: int
    physical: int
    length: int
