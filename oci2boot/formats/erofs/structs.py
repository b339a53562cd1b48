"""EROFS structs, and the header that composefs puts in front of them.

Linux, fs/erofs/erofs_fs.h; composefs, libcomposefs/lcfs-erofs.h. Field names are the kernel's, without their `i_`.
"""

import stat
from dataclasses import dataclass
from typing import Annotated, Final

from oci2boot.formats.binary import I64, U8, U16, U32, U64, Record

BLOCK: Final = 4096
SLOT: Final = 32
"""A nid counts these from the start of the image, as long as `meta_blkaddr` is 0."""

SUPERBLOCK_OFFSET: Final = 1024
INODES_OFFSET: Final = 1152
IMAGE_MAX: Final = 1 << 30
"""No larger image is written or read; composefs-rs 0.9 has the same limit."""

COMPOSEFS_MAGIC: Final = 0xD078629A
HEADER_HAS_ACL: Final = 1
EROFS_MAGIC: Final = 0xE0F5E1E2
FEATURE_COMPAT_MTIME: Final = 2
FEATURE_COMPAT_XATTR_FILTER: Final = 4
FEATURE_COMPAT_KNOWN: Final = 7
FEATURE_INCOMPAT_KNOWN: Final = 4  # chunked files

FLAT_PLAIN: Final = 0
FLAT_INLINE: Final = 2
CHUNK_BASED: Final = 4
NULL_CHUNK: Final = b"\xff\xff\xff\xff"

FILE_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
"""What a directory entry says of its inode."""


@dataclass(frozen=True, slots=True)
class ComposefsHeader(Record):
    magic: U32
    version: U32
    flags: U32
    composefs_version: U32
    unused: Annotated[bytes, "16s"] = b""


@dataclass(frozen=True, slots=True)
class Superblock(Record):
    magic: U32
    checksum: U32
    feature_compat: U32
    blkszbits: U8
    sb_extslots: U8
    root_nid: U16
    inos: U64
    build_time: I64
    """Seconds; compact inodes have this as their mtime. Signed, as C mkcomposefs compares it."""
    build_time_nsec: U32
    blocks: U32
    meta_blkaddr: U32
    xattr_blkaddr: U32
    uuid: Annotated[bytes, "16s"] = b""
    volume_name: Annotated[bytes, "16s"] = b""
    feature_incompat: U32 = 0
    available_compr_algs: U16 = 0
    extra_devices: U16 = 0
    devt_slotoff: U16 = 0
    dirblkbits: U8 = 0
    xattr_prefix_count: U8 = 0
    xattr_prefix_start: U32 = 0
    packed_nid: U64 = 0
    xattr_filter_reserved: U8 = 0
    reserved: Annotated[bytes, "23s"] = b""


@dataclass(frozen=True, slots=True)
class CompactInode(Record):
    format: U16
    """Bit 0: extended; bits 1 to 3: data layout."""
    xattr_icount: U16
    mode: U16
    nlink: U16
    size: U32
    reserved: U32
    u: U32
    """Block number, chunk format or device number, by data layout and file type."""
    ino: U32
    uid: U16
    gid: U16
    reserved2: U32


@dataclass(frozen=True, slots=True)
class ExtendedInode(Record):
    format: U16
    xattr_icount: U16
    mode: U16
    reserved: U16
    size: U64
    u: U32
    ino: U32
    uid: U32
    gid: U32
    mtime: I64
    mtime_nsec: U32
    nlink: U32
    reserved2: Annotated[bytes, "16s"]


@dataclass(frozen=True, slots=True)
class XattrAreaHeader(Record):
    """`struct erofs_xattr_ibody_header`: what stands between an inode and its xattrs."""

    name_filter: U32
    shared_count: U8
    reserved: Annotated[bytes, "7s"] = b""


@dataclass(frozen=True, slots=True)
class XattrEntry(Record):
    name_len: U8
    name_index: U8
    value_size: U16


@dataclass(frozen=True, slots=True)
class DirectoryEntry(Record):
    nid: U64
    nameoff: U16
    file_type: U8
    reserved: U8 = 0
