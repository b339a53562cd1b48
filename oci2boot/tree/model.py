"""The root file system as a value: directories of inodes, hard links as one inode under several names.

Paths and names are bytes, as in an image. A tree holds no device and no open file: contents of files over
`INLINE_MAX` bytes are objects of a store, named by digest.
"""

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from oci2boot.digest import External

INLINE_MAX: Final = 64
"""Files up to this size live in the metadata image; composefs-rs and C mkcomposefs agree on it."""

NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})
SELINUX_XATTR: Final = b"security.selinux"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Metadata:
    """What an inode has besides its content. `mode` is the permission bits alone, 07777."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    """Whole seconds since 1970, may be negative."""
    mtime_nsec: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)


@dataclass(frozen=True, slots=True)
class Sparse:
    """The content of a regular file that is all hole; only dump files can say so."""

    size: int


Content = bytes | External | Sparse


@dataclass(frozen=True, slots=True, eq=False)
class Directory:
    meta: Metadata
    entries: Mapping[bytes, "Inode"]


@dataclass(frozen=True, slots=True, eq=False)
class File:
    meta: Metadata
    content: Content

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


@dataclass(frozen=True, slots=True, eq=False)
class Symlink:
    meta: Metadata
    target: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """A character or block device; `rdev` is the kernel's new_encode_dev() number, 32 bits."""

    meta: Metadata
    kind: int
    """`stat.S_IFCHR` or `stat.S_IFBLK`."""
    rdev: int


@dataclass(frozen=True, slots=True, eq=False)
class Special:
    """A FIFO or a socket."""

    meta: Metadata
    kind: int
    """`stat.S_IFIFO` or `stat.S_IFSOCK`."""


Leaf = File | Symlink | Device | Special
Inode = Directory | Leaf


def file_type(inode: Inode) -> int:
    """Return the `stat.S_IFMT` bits."""
    match inode:
        case Directory():
            return stat.S_IFDIR
        case File():
            return stat.S_IFREG
        case Symlink():
            return stat.S_IFLNK
        case Device() | Special():
            return inode.kind


def walk(root: Directory) -> Iterator[tuple[bytes, Inode]]:
    """Yield (path, inode) depth first, siblings in bytewise order of name; the root is `/`.

    A hard link appears under each of its names, as the same object.
    """
    yield b"/", root
    stack: list[tuple[bytes, Iterator[tuple[bytes, Inode]]]] = [(b"/", iter(sorted(root.entries.items())))]
    while stack:
        prefix, entries = stack[-1]
        for name, inode in entries:
            path = prefix + name
            yield path, inode
            if isinstance(inode, Directory):
                stack.append((path + b"/", iter(sorted(inode.entries.items()))))
                break
        else:
            stack.pop()


def find(root: Directory, path: bytes) -> Inode | None:
    """Return the inode at an absolute or relative `path`, following no symlink; None where nothing is."""
    inode: Inode = root
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        if not isinstance(inode, Directory) or name not in inode.entries:
            return None
        inode = inode.entries[name]
    return inode


def put(root: Directory, path: bytes, inode: Inode | None) -> Directory:
    """Return the tree with an inode at `path`, or nothing there; what is no directory on the way gives way to one."""
    name, _, rest = path.strip(b"/").partition(b"/")
    entries = dict(root.entries)
    if rest:
        found = entries.get(name)
        if not isinstance(found, Directory):
            if inode is None:
                return root
            found = Directory(Metadata(mode=0o755), {})
        inode = put(found, rest, inode)
    if inode is None:
        entries.pop(name, None)
    else:
        entries[name] = inode
    return Directory(root.meta, entries)


def rewrite(root: Directory, change: Callable[[Inode], Inode | None]) -> Directory:
    """Return the tree with what `change` gives for every inode, those in a directory before it; None takes one out.

    What does not change stays the same object, and hard links stay one inode.
    """
    changed: dict[int, Inode | None] = {}  # by id() of the inode that is replaced
    directories = [root]
    for directory in directories:
        for inode in directory.entries.values():
            if isinstance(inode, Directory):
                directories.append(inode)
            elif id(inode) not in changed and (new := change(inode)) is not inode:
                changed[id(inode)] = new
    for directory in reversed(directories):
        now = directory
        if any(id(inode) in changed for inode in directory.entries.values()):
            pairs = [(name, changed.get(id(inode), inode)) for name, inode in directory.entries.items()]
            now = Directory(directory.meta, {name: inode for name, inode in pairs if inode is not None})
        if (new := change(now)) is not directory:
            changed[id(directory)] = new
    result = changed.get(id(root), root)
    assert isinstance(result, Directory)
    return result
