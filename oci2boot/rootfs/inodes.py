"""First step of a composefs image: the tree's inodes, rewritten for overlayfs, in the order of the image.

V0 and V1 go breadth first, as C mkcomposefs; V2 goes depth first, as composefs-rs did before 0.7.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Literal

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.erofs import xattrs
from oci2boot.formats.erofs.directory import NAME_MAX
from oci2boot.formats.erofs.structs import FILE_TYPES
from oci2boot.rootfs import overlay
from oci2boot.tree.model import (
    NO_XATTRS,
    SELINUX_XATTR,
    Device,
    Directory,
    File,
    Inode,
    Leaf,
    Metadata,
    Sparse,
    Symlink,
)

Version = Literal[0, 1, 2]

DEPTH_MAX: Final = 2048
FILE_SIZE_MAX: Final = 1 << 53
"""8 PiB. C mkcomposefs accepts no more."""


@dataclass(frozen=True, slots=True)
class Limits:
    inline: int
    """Bytes of a file that lies in the image."""
    symlink: int
    xattrs: int
    """Bytes of an inode's xattrs as C mkcomposefs counts them: 12, and name, value and 7 for each."""


_C: Final = Limits(inline=5000, symlink=4095, xattrs=32767)
_RUST: Final = Limits(inline=512, symlink=1024, xattrs=xattrs.AREA_MAX)
LIMITS: Final[dict[Version, Limits]] = {0: _C, 1: _C, 2: _RUST}
"""What the tools accept that define the formats: C mkcomposefs for V0 and V1, composefs-rs for V2."""

_NOT_NAMES: Final = frozenset((b"", b".", b".."))
_PARENT_MARKS: Final = {0: overlay.WHITEOUTS_MARKS, 1: {**overlay.WHITEOUTS_MARKS, **overlay.OPAQUE_MARKS}}


Pair = tuple[bytes, bytes]
"""An xattr's full name, escaped, and its value."""
Pairs = tuple[Pair, ...]


@dataclass(slots=True, eq=False, kw_only=True)
class Area:
    """The xattr area of one inode, or of all inodes with the same xattrs."""

    template: bool
    """Whether it serves files whose content no other has: it holds a zero digest, to be overwritten in each inode."""
    pairs: Pairs
    """In order."""
    shared: list[Pair]
    inline: list[Pair]
    size: int
    icount: int
    encoded: bytes = b""
    digest_at: int = 0
    redirect_at: int = 0


@dataclass(slots=True, eq=False, init=False, repr=False)
class Node:
    """One inode of the image while it is planned; each step sets its part."""

    meta: Metadata
    mode: int
    type: int
    """As directory entries have it."""
    nlink: int
    size: int
    data: bytes
    """A symlink's target or inline content."""
    digest: VerityDigest | None
    sparse: bool
    marks: Mapping[bytes, bytes]
    """Xattrs that the rewriting adds, escaped."""
    entries: list[tuple[bytes, "Node"]]
    own: list["Node"]
    """The children that have their first name here, depth first: there a hard link is emitted."""

    area: Area

    u: int
    extended: bool
    layout: int
    splits: list[int]
    """Where a directory's blocks end, in `entries`."""
    blocks: int
    tail: int
    nid: int
    block: int
    """The number of its first data block, if it has any."""

    def __init__(self, meta: Metadata, kind: int) -> None:
        self.meta = meta
        self.mode = kind | meta.mode
        self.type = FILE_TYPES[kind]
        self.nlink = 1
        self.size = 0
        self.data = b""
        self.digest = None
        self.sparse = False
        self.marks = NO_XATTRS
        self.u = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Stub(Device):
    """A whiteout that stays one; those of the tree are escaped."""


def collect(root: Directory, version: Version, algorithm: Hash) -> list[Node]:
    """Return the image's inodes in order, root first; directories' entries are complete, with `.` and `..`, sorted."""
    depth_first: list[Node] = []
    leaves: dict[int, Node] = {}
    stack: list[tuple[Node, Iterator[tuple[bytes, Inode]]]] = []
    path: list[bytes] = []

    def enter(directory: Directory, entries: Mapping[bytes, Inode]) -> Node:
        node = _directory(directory, stack[-1][0] if stack else None)
        depth_first.append(node)
        stack.append((node, _children(entries)))
        if len(stack) > DEPTH_MAX:
            raise LimitError(f"directories are nested more than {DEPTH_MAX} deep")
        return node

    try:
        top = enter(root, root.entries if version == 2 else {**_stubs(root), **root.entries})
        while stack:
            parent, children = stack[-1]
            for name, inode in children:
                path.append(name)
                if isinstance(inode, Directory):
                    child = enter(inode, inode.entries)
                    parent.nlink += 1
                    parent.entries.append((name, child))
                    parent.own.append(child)
                    break
                known = leaves.get(id(inode))
                if known is None:
                    known = leaves[id(inode)] = _leaf(inode, version, algorithm, parent)
                    parent.own.append(known)
                    depth_first.append(known)
                else:
                    _link(known)
                parent.entries.append((name, known))
                path.pop()
            else:
                parent.entries.sort(key=itemgetter(0))
                stack.pop()
                del path[-1:]
    except (FormatError, LimitError) as error:
        where = (b"/" + b"/".join(path)).decode(errors="backslashreplace")
        raise type(error)(f"{where}: {error.message}", error.hint) from None
    if version == 2:
        return depth_first
    top.marks = {**top.marks, overlay.OPAQUE: b"y"}
    breadth_first = [top]
    for node in breadth_first:
        if node.type == FILE_TYPES[stat.S_IFDIR]:
            breadth_first += node.own
    return breadth_first


def _stubs(root: Directory) -> dict[bytes, Inode]:
    meta = root.meta
    label = meta.xattrs.get(SELINUX_XATTR)
    xattrs = NO_XATTRS if label is None else {SELINUX_XATTR: label}
    stub = Metadata(mode=0o644, uid=meta.uid, gid=meta.gid, mtime=meta.mtime, mtime_nsec=meta.mtime_nsec, xattrs=xattrs)
    return {name: _Stub(stub, stat.S_IFCHR, 0) for name in overlay.STUB_NAMES}


def _children(entries: Mapping[bytes, Inode]) -> Iterator[tuple[bytes, Inode]]:
    names = b"".join(entries)
    if b"/" in names or b"\0" in names or not entries.keys().isdisjoint(_NOT_NAMES):
        raise FormatError("a name in this directory is empty, `.` or `..`, or has a slash or NUL in it")
    if entries and len(max(entries, key=len)) > NAME_MAX:
        raise LimitError(f"a name in this directory is longer than {NAME_MAX} bytes")
    return iter(sorted(entries.items()))


def _new(meta: Metadata, kind: int) -> Node:
    if meta.mode >> 12 or (meta.uid | meta.gid) >> 32:
        raise FormatError(f"mode {meta.mode:o}, uid {meta.uid} or gid {meta.gid} is out of range")
    if not (-(1 << 63) <= meta.mtime < 1 << 63 and 0 <= meta.mtime_nsec < 1_000_000_000):
        raise FormatError(f"the time {meta.mtime} s {meta.mtime_nsec} ns is out of range")
    return Node(meta, kind)


def _directory(inode: Directory, parent: Node | None) -> Node:
    node = _new(inode.meta, stat.S_IFDIR)
    node.nlink = 2
    node.entries = [(b".", node), (b"..", parent or node)]
    node.own = []
    return node


def _leaf(inode: Leaf, version: Version, algorithm: Hash, parent: Node) -> Node:
    limits = LIMITS[version]
    match inode:
        case File():
            node = _new(inode.meta, stat.S_IFREG)
            content = inode.content
            node.size = inode.size
            if isinstance(content, bytes):
                if node.size > limits.inline:
                    raise LimitError(
                        f"content of {node.size} bytes lies in the image, format V{version} has {limits.inline}"
                    )
                node.data = content
                return node
            if not 0 <= node.size <= FILE_SIZE_MAX:
                raise LimitError(f"a file of {node.size} bytes, at most {FILE_SIZE_MAX} are known to work")
            if isinstance(content, Sparse):
                node.sparse = node.size > 0
            elif node.size or version == 2:
                if content.digest.algorithm != algorithm:
                    raise FormatError(
                        f"its content has a {content.digest.algorithm} digest, the image is for {algorithm}"
                    )
                node.digest = content.digest
        case Symlink():
            node = _new(inode.meta, stat.S_IFLNK)
            node.data = inode.target
            node.size = len(inode.target)
            if not node.data or b"\0" in node.data:
                raise FormatError("a symlink's target is empty or has a NUL in it")
            if node.size > limits.symlink:
                raise LimitError(f"a symlink's target of {node.size} bytes, format V{version} has {limits.symlink}")
        case _Stub():
            node = _new(inode.meta, stat.S_IFCHR)
        case Device() if is_whiteout(inode):
            if version == 2:
                raise FormatError("format V2 cannot hold a character device 0:0", hint="format V1 can")
            node = _new(inode.meta, stat.S_IFREG)
            node.marks = overlay.WHITEOUT_MARKS
            parent.marks = _PARENT_MARKS[version]
        case Device():
            node = _new(inode.meta, inode.kind)
            node.u = inode.rdev
            if not 0 <= inode.rdev < 1 << 32:
                raise FormatError(f"the device number {inode.rdev} does not fit 32 bits")
        case _:
            node = _new(inode.meta, inode.kind)
    return node


def _link(node: Node) -> None:
    if node.marks is overlay.WHITEOUT_MARKS:
        raise FormatError("a character device 0:0 has a second name", hint="overlayfs takes it for a whiteout")
    node.nlink += 1


def is_whiteout(inode: Inode) -> bool:
    return isinstance(inode, Device) and inode.kind == stat.S_IFCHR and inode.rdev == 0
