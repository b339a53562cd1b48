"""A composefs image back as the tree it was built from, and the objects it needs. Hostile images are an `Error`."""

import stat
from typing import Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.erofs.reader import ErofsImage, Inode
from oci2boot.formats.erofs.structs import FILE_TYPES
from oci2boot.rootfs import overlay
from oci2boot.rootfs.inodes import DEPTH_MAX
from oci2boot.tree import model
from oci2boot.tree.model import NO_XATTRS, Content, Device, Directory, File, Leaf, Metadata, Sparse, Special, Symlink

_REGULAR: Final = FILE_TYPES[stat.S_IFREG]
_DIRECTORY: Final = FILE_TYPES[stat.S_IFDIR]
_CHARACTER: Final = FILE_TYPES[stat.S_IFCHR]
_STUBS: Final = frozenset(overlay.STUB_NAMES)

Xattrs = dict[bytes, bytes]


def read_rootfs(image: bytes) -> Directory:
    """Return the tree of an image of any format; what the writer added or escaped for overlayfs is undone."""
    return _Reader(ErofsImage(image)).tree()


def referenced_objects(image: bytes) -> set[VerityDigest]:
    """Return the digests of all files whose content is an object."""
    erofs = ErofsImage(image)
    seen: set[int] = set()
    values: set[bytes] = set()
    for _, children in erofs.directories():
        for _, nid, file_type in children:
            if file_type == _REGULAR and nid not in seen:
                seen.add(nid)
                value = erofs.xattrs(erofs.inode(nid)).get(overlay.METACOPY)
                if value:
                    values.add(value)
    return {overlay.parse_metacopy(value) for value in values}


class _Reader:
    def __init__(self, erofs: ErofsImage) -> None:
        self._erofs = erofs
        self._leaves: dict[int, Leaf] = {}
        self._interned: dict[tuple[tuple[bytes, bytes], ...], Xattrs] = {}
        self._parent_marks = dict(overlay.WHITEOUTS_MARKS)
        if erofs.version == 1:
            self._parent_marks |= overlay.OPAQUE_MARKS

    def tree(self) -> Directory:
        root_nid = self._erofs.superblock.root_nid
        places: dict[int, tuple[dict[bytes, model.Inode], bytes, int]] = {root_nid: ({}, b"/", 0)}
        top = places[root_nid][0]
        for inode, children in self._erofs.directories():
            siblings, own_name, depth = places.pop(inode.nid)
            if depth > DEPTH_MAX:
                raise LimitError(f"directories are nested more than {DEPTH_MAX} deep")
            is_root = inode.nid == root_nid
            xattrs = self._erofs.xattrs(inode)
            if is_root and self._erofs.version != 2:
                xattrs.pop(overlay.OPAQUE, None)
            marked = self._erofs.version != 2 and self._parent_marks.items() <= xattrs.items()
            whiteouts = False
            entries: dict[bytes, model.Inode] = {}
            for name, nid, file_type in children:
                if file_type == _DIRECTORY:
                    places[nid] = entries, name, depth + 1
                    continue
                leaf = self._leaves.get(nid)
                if leaf is None:
                    leaf = self._leaves[nid] = self._leaf(nid, file_type, marked=marked)
                    whiteouts |= marked and isinstance(leaf, Device) and file_type == _REGULAR
                elif FILE_TYPES[model.file_type(leaf)] != file_type:
                    raise _wrong_type(nid)
                if not (is_root and self._is_stub(name, leaf, file_type)):
                    entries[name] = leaf
            if whiteouts:
                xattrs = {key: value for key, value in xattrs.items() if key not in self._parent_marks}
            siblings[own_name] = Directory(self._metadata(inode, xattrs), entries)
        root = top[b"/"]
        assert isinstance(root, Directory)
        return root

    def _is_stub(self, name: bytes, leaf: Leaf, file_type: int) -> bool:
        if self._erofs.version == 2 or file_type != _CHARACTER or name not in _STUBS:
            return False
        return isinstance(leaf, Device) and leaf.rdev == 0

    def _leaf(self, nid: int, file_type: int, *, marked: bool) -> Leaf:
        inode = self._erofs.inode(nid)
        kind = stat.S_IFMT(inode.mode)
        if FILE_TYPES.get(kind) != file_type:
            raise _wrong_type(nid)
        xattrs = self._erofs.xattrs(inode)
        if kind == stat.S_IFREG:
            if marked and inode.size == 0 and inode.nlink == 1 and overlay.WHITEOUT_MARKS.items() <= xattrs.items():
                native = {key: value for key, value in xattrs.items() if key not in overlay.WHITEOUT_MARKS}
                return Device(self._metadata(inode, native), stat.S_IFCHR, 0)
            content = self._content(inode, xattrs)
            return File(self._metadata(inode, xattrs), content)
        meta = self._metadata(inode, xattrs)
        if kind == stat.S_IFLNK:
            return Symlink(meta, self._erofs.content(inode))
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            return Device(meta, kind, inode.u)
        return Special(meta, kind)

    def _content(self, inode: Inode, xattrs: Xattrs) -> Content:
        """Return a file's content, taking from `xattrs` those that tell where it is."""
        metacopy = xattrs.pop(overlay.METACOPY, None)
        redirect = xattrs.pop(overlay.REDIRECT, None)
        if metacopy:
            digest = overlay.parse_metacopy(metacopy)
            if redirect != overlay.redirect(digest):
                raise FormatError(f"inode {inode.nid} has the digest {digest} and the content of {redirect!r}")
            return External(digest, inode.size)
        if redirect is not None:
            raise FormatError(f"inode {inode.nid} has the content of {redirect!r} and no digest")
        if metacopy is not None:
            return Sparse(inode.size)
        return self._erofs.content(inode) if inode.size else b""

    def _metadata(self, inode: Inode, xattrs: Xattrs) -> Metadata:
        native: Xattrs = {}
        for name, value in xattrs.items():
            if name.startswith(overlay.PREFIX) and not name.startswith(overlay.ESCAPED):
                raise FormatError(f"inode {inode.nid} has the xattr {name!r}, which means something to overlayfs")
            native[overlay.unescape(name)] = value
        native = self._interned.setdefault(tuple(native.items()), native)
        meta = (inode.mode & 0o7777, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec)
        return Metadata(*meta, native or NO_XATTRS)


def _wrong_type(nid: int) -> FormatError:
    return FormatError(f"inode {nid} is of another type than its directory says")
