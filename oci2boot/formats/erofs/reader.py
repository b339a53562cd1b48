"""Reads the inodes of a composefs image without trusting a byte of it.

An honest image stores nothing twice but the shared xattrs. So each inode read claims its bytes (xattr area, directory
blocks, content), and all claims together may not exceed the image: work stays linear whatever the image says.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.erofs import directory, xattrs
from oci2boot.formats.erofs.structs import (
    BLOCK,
    CHUNK_BASED,
    COMPOSEFS_MAGIC,
    EROFS_MAGIC,
    FEATURE_COMPAT_KNOWN,
    FEATURE_INCOMPAT_KNOWN,
    FILE_TYPES,
    FLAT_INLINE,
    FLAT_PLAIN,
    IMAGE_MAX,
    INODES_OFFSET,
    SLOT,
    SUPERBLOCK_OFFSET,
    CompactInode,
    ComposefsHeader,
    ExtendedInode,
    Superblock,
    XattrAreaHeader,
    XattrEntry,
)

CONTENT_MAX: Final = 1 << 16
"""Bytes of a symlink's target or of a file in the image; mkcomposefs writes at most 5000."""

_DOTS: Final = frozenset((b".", b".."))
_DIRECTORY: Final = FILE_TYPES[stat.S_IFDIR]
_COMPOSEFS_VERSIONS: Final = frozenset((0, 1, 2))
_COMPACT: Final = CompactInode.layout()
_EXTENDED: Final = ExtendedInode.layout()
_AREA_HEADER: Final = XattrAreaHeader.layout()
_ENTRY: Final = XattrEntry.layout()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inode:
    nid: int
    mode: int
    nlink: int
    size: int
    u: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    layout: int
    xattrs_at: int
    xattrs_end: int


class ErofsImage:
    """A composefs image in memory."""

    def __init__(self, data: bytes) -> None:
        if len(data) > IMAGE_MAX:
            raise LimitError(f"a composefs image of {len(data)} bytes, at most {IMAGE_MAX} are read")
        header = ComposefsHeader.unpack(data)
        if header.magic != COMPOSEFS_MAGIC or header.version != 1:
            raise FormatError("not a composefs image")
        if header.composefs_version not in _COMPOSEFS_VERSIONS:
            raise FormatError(f"a composefs image of format V{header.composefs_version}, which is not known")
        superblock = Superblock.unpack(data, SUPERBLOCK_OFFSET)
        if superblock.magic != EROFS_MAGIC or superblock.blkszbits != BLOCK.bit_length() - 1:
            raise FormatError("a composefs image without an EROFS superblock of 4096-byte blocks")
        if (
            superblock.feature_compat & ~FEATURE_COMPAT_KNOWN
            or superblock.feature_incompat & ~FEATURE_INCOMPAT_KNOWN
            or superblock.meta_blkaddr
            or superblock.sb_extslots
            or superblock.packed_nid
            or superblock.xattr_prefix_count
            or superblock.extra_devices
        ):
            raise FormatError("an EROFS image with features that no composefs image has")
        self.version = header.composefs_version
        self.superblock = superblock
        self._data = data
        self._unclaimed = len(data)
        self._shared: dict[int, tuple[bytes, bytes]] = {}

    def inode(self, nid: int) -> Inode:
        at = nid * SLOT
        data = self._data
        if at < INODES_OFFSET or at + _COMPACT.size > len(data):
            raise FormatError(f"inode {nid} is outside of the image")
        form = data[at]
        if form & 1:
            if at + _EXTENDED.size > len(data):
                raise FormatError(f"inode {nid} is outside of the image")
            form, icount, mode, _, size, u, _, uid, gid, mtime, nsec, nlink, _ = _EXTENDED.unpack_from(data, at)
            at += _EXTENDED.size
        else:
            form, icount, mode, nlink, size, _, u, _, uid, gid, _ = _COMPACT.unpack_from(data, at)
            mtime, nsec = self.superblock.build_time, self.superblock.build_time_nsec
            at += _COMPACT.size
        layout = form >> 1
        if layout not in (FLAT_PLAIN, FLAT_INLINE, CHUNK_BASED) or nsec >= 1_000_000_000:
            raise FormatError(f"inode {nid} has data layout {layout} and {nsec} ns, which no composefs image has")
        end = at + (_AREA_HEADER.size + 4 * (icount - 1) if icount else 0)
        if end > len(data):
            raise FormatError(f"the xattrs of inode {nid} are outside of the image")
        self._claim(end - nid * SLOT)
        return Inode(
            nid=nid,
            mode=mode,
            nlink=nlink,
            size=size,
            u=u,
            uid=uid,
            gid=gid,
            mtime=mtime,
            mtime_nsec=nsec,
            layout=layout,
            xattrs_at=at,
            xattrs_end=end,
        )

    def _claim(self, size: int) -> None:
        self._unclaimed -= size
        if self._unclaimed < 0:
            raise FormatError("the inodes of the image share bytes that belong to one inode each")

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return the xattrs by full name, as they are stored: nothing is unescaped."""
        at, end = inode.xattrs_at, inode.xattrs_end
        if at == end:
            return {}
        data = self._data
        ids_end = at + _AREA_HEADER.size + 4 * data[at + 4]
        if ids_end > end:
            raise FormatError(f"inode {inode.nid} has more shared xattrs than its xattr area holds")
        xattrs: dict[bytes, bytes] = {}
        for ids_at in range(at + _AREA_HEADER.size, ids_end, 4):
            name, value = self._shared_xattr(int.from_bytes(data[ids_at : ids_at + 4], "little"))
            xattrs[name] = value
        count = data[at + 4]
        at = ids_end
        while at < end:
            name, value, at = self._entry(at, end)
            xattrs[name] = value
            count += 1
        if len(xattrs) != count:
            raise FormatError(f"inode {inode.nid} has an xattr twice")
        return xattrs

    def _shared_xattr(self, number: int) -> tuple[bytes, bytes]:
        known = self._shared.get(number)
        if known is None:
            at = self.superblock.xattr_blkaddr * BLOCK + 4 * number
            known = self._shared[number] = self._entry(at, len(self._data))[:2]
        return known

    def _entry(self, at: int, end: int) -> tuple[bytes, bytes, int]:
        if at + _ENTRY.size > end:
            raise FormatError("an xattr is outside of its place")
        name_len, index, value_size = _ENTRY.unpack_from(self._data, at)
        at += _ENTRY.size
        value_at = at + name_len
        if value_at + value_size > end:
            raise FormatError("an xattr is longer than its place")
        name = xattrs.join_name(index, self._data[at:value_at])
        if not name or b"\0" in name:
            raise FormatError(f"not the name of an xattr: prefix {index}, {name!r}")
        return name, self._data[value_at : value_at + value_size], (value_at + value_size + 3) & ~3

    def content(self, inode: Inode) -> bytes:
        """Return a symlink's target or a file's content, where it lies in the image."""
        if inode.layout == CHUNK_BASED:
            raise FormatError(f"inode {inode.nid} has its content in chunks, and no object for it")
        if inode.size > CONTENT_MAX:
            raise LimitError(f"inode {inode.nid} has {inode.size} bytes in the image, at most {CONTENT_MAX} are read")
        return b"".join(self._pieces(inode))

    def entries(self, inode: Inode) -> list[tuple[bytes, int, int]]:
        """Return a directory's (name, nid, file type), in order, with `.` and `..`."""
        if not stat.S_ISDIR(inode.mode) or inode.layout == CHUNK_BASED:
            raise FormatError(f"inode {inode.nid} should be a directory")
        entries = [entry for piece in self._pieces(inode) for entry in directory.unpack(piece)]
        if any(a >= b for (a, _, _), (b, _, _) in pairwise(entries)):
            raise FormatError(f"directory {inode.nid} is not sorted by name")
        return entries

    def directories(self) -> Iterator[tuple[Inode, list[tuple[bytes, int, int]]]]:
        """Yield each directory, parents first, with its entries except `.` and `..`; no directory has two names."""
        root = self.superblock.root_nid
        seen = {root}
        todo = [(root, root)]
        while todo:
            nid, parent = todo.pop()
            inode = self.inode(nid)
            entries = self.entries(inode)
            dots = {name: target for name, target, _ in entries if name in _DOTS}
            if dots != {b".": nid, b"..": parent}:
                raise FormatError(f"directory {nid} has no proper `.` and `..`")
            children = [entry for entry in entries if entry[0] not in _DOTS]
            for _, child, file_type in children:
                if file_type == _DIRECTORY:
                    if child in seen:
                        raise FormatError(f"directory {child} has two names")
                    seen.add(child)
                    todo.append((child, nid))
            yield inode, children

    def _pieces(self, inode: Inode) -> list[bytes]:
        """Return the data in blocks, and the tail."""
        size, at = inode.size, inode.u * BLOCK
        self._claim(size)
        tail = size % BLOCK if inode.layout == FLAT_INLINE else 0
        end = at + size - tail
        if end > len(self._data) or inode.xattrs_end + tail > len(self._data):
            raise FormatError(f"the data of inode {inode.nid} is outside of the image")
        pieces = [self._data[start : min(start + BLOCK, end)] for start in range(at, end, BLOCK)]
        if tail:
            pieces.append(self._data[inode.xattrs_end : inode.xattrs_end + tail])
        return pieces
