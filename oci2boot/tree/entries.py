"""A tree as the entries of one layer: what `merge` makes a tree of."""

import stat
from collections.abc import Callable, Iterator

from oci2boot.errors import ImageError
from oci2boot.formats.tar import HARD_LINK, Entry, printable
from oci2boot.tree.model import Device, Directory, File, Inode, Sparse, Special, Symlink, walk


def entries_of(root: Directory, warn: Callable[[str], None]) -> Iterator[Entry]:
    """Yield an entry for each name, a directory before what is in it; a socket, which no tar can hold, is left out."""
    names: dict[int, bytes] = {}
    for absolute, inode in walk(root):
        path = absolute[1:] or b"."
        if isinstance(inode, Special) and inode.kind == stat.S_IFSOCK:
            warn(f"{printable(absolute)} is a socket: left out, a layer cannot hold it")
            continue
        first = names.setdefault(id(inode), path)
        if first != path and not isinstance(inode, Directory):
            yield _entry(path, HARD_LINK, inode, linkname=first)
            continue
        match inode:
            case Directory():
                yield _entry(path, stat.S_IFDIR, inode)
            case File(content=Sparse()):
                raise ImageError(f"{printable(absolute)} has no content")
            case File(content=content) if not isinstance(content, Sparse):
                yield _entry(path, stat.S_IFREG, inode)._replace(content=content)
            case Symlink():
                yield _entry(path, stat.S_IFLNK, inode, linkname=inode.target)
            case Device():
                yield _entry(path, inode.kind, inode)._replace(rdev=inode.rdev)
            case Special():
                yield _entry(path, inode.kind, inode)


def _entry(path: bytes, kind: int, inode: Inode, linkname: bytes = b"") -> Entry:
    meta = inode.meta
    xattrs = {} if kind == HARD_LINK else meta.xattrs
    return Entry(path, kind, meta.mode, meta.uid, meta.gid, meta.mtime, meta.mtime_nsec, xattrs, b"", linkname, 0)
