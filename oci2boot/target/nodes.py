"""The entries of a root partition as inodes: checked, numbered, and measured in blocks."""

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.errors import FormatError, TargetError
from oci2boot.formats import ext4
from oci2boot.formats.ext4_blocks import directory_size, verity_tree_blocks
from oci2boot.formats.ext4_xattr import split_xattrs
from oci2boot.target.entries import RootEntry
from oci2boot.tree.model import Metadata

BLOCK: Final = 4096
INODE_SIZE: Final = 256
IN_INODE: Final = INODE_SIZE - ext4.INODE_FIXED
"""What an inode has for extended attributes."""
LOST_FOUND: Final = b"/lost+found"
LOST_FOUND_INODE: Final = 11
FIRST_INODE: Final = 12
LINKS_MAX: Final = 65000
SYMLINK_MAX: Final = BLOCK - 1
FILE_MAX: Final = 1 << 40
"""Of one file, in bytes; ext4 could hold 16 times as much."""

_KINDS: Final = {
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Node:
    """An inode with everything that is known before blocks are given out."""

    number: int
    parent: int
    entry: RootEntry
    names: Sequence[tuple[bytes, int, int]]
    """Of a directory: (name, inode number, `stat.S_IFMT` bits) in bytewise order."""
    in_inode: bytes
    xattr_block: bytes | None
    data_blocks: int
    verity_blocks: int
    """Merkle tree and descriptor."""

    @property
    def blocks(self) -> int:
        """Without those of an extent tree."""
        return self.data_blocks + self.verity_blocks + (self.xattr_block is not None)

    @property
    def links(self) -> int:
        if self.entry.kind != stat.S_IFDIR:
            return 1 + len(self.entry.links)
        links = 2 + sum(kind == stat.S_IFDIR for _, _, kind in self.names)
        return links if links < LINKS_MAX else 1  # dir_nlink: 1 says "too many to count"


def number_entries(entries: Sequence[RootEntry]) -> tuple[Node, ...]:
    """Return the inodes in the order of their paths, `/` first; refuse what ext4 or a sane tree cannot hold."""
    by_path = {entry.path: entry for entry in entries}
    if len(by_path) != len(entries):
        raise TargetError("two entries of the root partition have the same path")
    by_path.setdefault(b"/", RootEntry(path=b"/", kind=stat.S_IFDIR, meta=Metadata(mode=0o755)))
    by_path.setdefault(LOST_FOUND, RootEntry(path=LOST_FOUND, kind=stat.S_IFDIR, meta=Metadata(mode=0o700)))
    paths = sorted(by_path)
    numbers = {b"/": ext4.ROOT_INODE, LOST_FOUND: LOST_FOUND_INODE}
    ordinary = (path for path in paths if path not in numbers)
    numbers |= {path: number for number, path in enumerate(list(ordinary), FIRST_INODE)}

    names: dict[bytes, dict[bytes, tuple[int, int]]] = {
        path: {} for path in paths if by_path[path].kind == stat.S_IFDIR
    }
    for path in paths:
        entry = by_path[path]
        _check(entry)
        for name in (path, *entry.links):
            if name != b"/":
                _link(name, numbers[path], entry.kind, names)
    split = _xattr_splitter()
    return tuple(
        _node(by_path[path], numbers[path], numbers[_parent(path)], names.get(path, {}), split) for path in paths
    )


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"


def _link(path: bytes, number: int, kind: int, names: dict[bytes, dict[bytes, tuple[int, int]]]) -> None:
    parent, name = _parent(path), path.rpartition(b"/")[2]
    if not path.startswith(b"/") or name in (b"", b".", b"..") or b"\0" in name or len(name) > ext4.NAME_MAX:
        raise TargetError(f"not a path for the root partition: {path!r}")
    if parent not in names or parent == LOST_FOUND:
        raise TargetError(f"{path!r} has no directory to lie in")
    if name in names[parent]:
        raise TargetError(f"two entries of the root partition have the path {path!r}")
    names[parent][name] = (number, kind)


def _check(entry: RootEntry) -> None:
    shown = repr(entry.path)
    if entry.kind not in _KINDS:
        raise TargetError(f"{shown} is of an unknown kind: {entry.kind:#o}")
    if entry.path in (b"/", LOST_FOUND) and entry.kind != stat.S_IFDIR:
        raise TargetError(f"{shown} must be a directory")
    if entry.meta.mode & ~0o7777 or not (0 <= entry.meta.uid < 1 << 32 and 0 <= entry.meta.gid < 1 << 32):
        raise TargetError(f"{shown} has a mode or an owner that no inode can have")
    if entry.links and (entry.kind == stat.S_IFDIR or len(entry.links) >= LINKS_MAX):
        raise TargetError(f"{shown} cannot have {len(entry.links)} hard links")
    if entry.verity and entry.kind != stat.S_IFREG:
        raise TargetError(f"{shown} is not a regular file, fs-verity is for these only")
    if entry.kind == stat.S_IFLNK and not (isinstance(entry.source, bytes) and 0 < entry.size <= SYMLINK_MAX):
        raise TargetError(f"{shown} is a symbolic link whose target is empty or longer than {SYMLINK_MAX} bytes")
    if entry.size > FILE_MAX:
        raise TargetError(f"{shown} has {entry.size} bytes, at most {FILE_MAX} can be written")


_Split = Callable[[RootEntry], tuple[bytes, bytes | None]]


def _xattr_splitter() -> _Split:
    """Return `split_xattrs` with a memory: thousands of objects share one set of attributes."""
    known: dict[int, tuple[Mapping[bytes, bytes], tuple[bytes, bytes | None]]] = {}

    def split(entry: RootEntry) -> tuple[bytes, bytes | None]:
        xattrs = entry.meta.xattrs
        parts = known.get(id(xattrs))
        if parts is None:
            try:
                parts = known[id(xattrs)] = (xattrs, split_xattrs(xattrs, IN_INODE, BLOCK))
            except FormatError as error:
                raise TargetError(f"{entry.path!r} cannot be written: {error.message}") from error
        return parts[1]

    return split


def _node(entry: RootEntry, number: int, parent: int, names: Mapping[bytes, tuple[int, int]], split: _Split) -> Node:
    listing = [(name, *names[name]) for name in sorted(names)]
    data_blocks = verity_blocks = 0
    match entry.kind:
        case stat.S_IFDIR if number != LOST_FOUND_INODE:
            data_blocks = directory_size((name for name, _, _ in listing), BLOCK) // BLOCK
        case stat.S_IFREG:
            data_blocks = -(-entry.size // BLOCK)
        case stat.S_IFLNK if entry.size > ext4.FAST_SYMLINK_MAX:
            data_blocks = 1
    if entry.verity:
        verity_blocks = verity_tree_blocks(entry.size, len(entry.verity.raw)) + 1
    in_inode, xattr_block = split(entry)
    return Node(
        number=number,
        parent=parent,
        entry=entry,
        names=listing,
        in_inode=in_inode,
        xattr_block=xattr_block,
        data_blocks=data_blocks,
        verity_blocks=verity_blocks,
    )
