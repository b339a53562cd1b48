"""A tree as an EROFS image with all data in it, uncompressed: what dm-verity guards as a partition.

Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. In this order: superblock, the xattrs that several
inodes share, inodes with what is small enough to stand beside them, directories, and the files. Equal files lie in the
image once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from oci2boot.digest import External
from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.erofs import directory, xattrs
from oci2boot.formats.erofs.structs import (
    BLOCK,
    EROFS_MAGIC,
    FEATURE_COMPAT_MTIME,
    FEATURE_COMPAT_XATTR_FILTER,
    FILE_TYPES,
    FLAT_INLINE,
    FLAT_PLAIN,
    INODES_OFFSET,
    SLOT,
    SUPERBLOCK_OFFSET,
    ExtendedInode,
    Superblock,
)
from oci2boot.tree.model import Device, Directory, File, Inode, Sparse, Symlink, file_type

TAIL_MAX: Final = 2048
"""A longer rest of a link's target, or of content that is no object, gets a block."""
SHARED_MAX: Final = 1 << 20
"""Bytes of the table of shared xattrs: the root's inode comes after it, and its number has 16 bits."""
BLOCKS_MAX: Final = 0xFFFF_FFFF
DEPTH_MAX: Final = 2048

Pair = tuple[bytes, bytes]
_INODE: Final = ExtendedInode.layout()


@dataclass(frozen=True, slots=True)
class PlainImage:
    """An image except its files' content."""

    head: bytes
    """Everything before the first file, in whole blocks."""
    files: tuple[External, ...]
    """In order; each begins with a block."""
    size: int
    """In bytes, whole blocks."""
    inodes: int

    def pieces(self, read: Callable[[External], Iterable[bytes]]) -> Iterator[bytes]:
        """Yield the image's bytes. Raises `FormatError` where a content has another size than the tree says."""
        yield self.head
        for file in self.files:
            size = 0
            for piece in read(file):
                size += len(piece)
                yield piece
            if size != file.size:
                raise FormatError(f"object {file.digest} has {size} bytes, the tree says {file.size}")
            yield bytes(-size % BLOCK)


@dataclass(slots=True, eq=False, kw_only=True)
class _Node:
    inode: Inode
    nlink: int = 1
    children: list[tuple[bytes, "_Node"]] = field(default_factory=list)
    """Of a directory, with `.` and `..`, sorted by name."""
    splits: list[int] = field(default_factory=list)
    """Where a directory's blocks end, in `children`."""
    data: bytes = b""
    """Content that is no object, or a link's target."""
    area: bytes = b""
    size: int = 0
    blocks: int = 0
    tail: int = 0
    nid: int = 0
    block: int = 0


def plan_plain(tree: Directory, uuid: UUID, volume: str = "") -> PlainImage:
    """Lay the tree out. Raises `FormatError` or `LimitError` for what EROFS cannot hold."""
    nodes = _collect(tree)
    table = _share_xattrs(nodes)
    at = INODES_OFFSET + len(table)
    for node in nodes:
        _measure(node)
        at = _place(node, at)
    block = -(-at // BLOCK)
    for node in nodes:
        if node.blocks:
            node.block = block
            block += node.blocks
    head = bytearray(block * BLOCK)
    files: dict[External, int] = {}
    for node in nodes:
        if isinstance(node.inode, File) and isinstance(node.inode.content, External) and node.size:
            content = node.inode.content
            if content not in files:
                files[content] = block
                block += -(-content.size // BLOCK)
            node.block = files[content]
    if block > BLOCKS_MAX:
        raise LimitError(f"the image would have {block} blocks, EROFS counts to {BLOCKS_MAX}")
    superblock = Superblock(
        magic=EROFS_MAGIC,
        checksum=0,
        feature_compat=FEATURE_COMPAT_MTIME | FEATURE_COMPAT_XATTR_FILTER,
        blkszbits=12,
        sb_extslots=0,
        root_nid=nodes[0].nid,
        inos=len(nodes),
        build_time=0,
        build_time_nsec=0,
        blocks=block,
        meta_blkaddr=0,
        xattr_blkaddr=0,
        uuid=uuid.bytes,
        volume_name=volume.encode()[:16],
    ).pack()
    head[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + len(superblock)] = superblock
    head[INODES_OFFSET : INODES_OFFSET + len(table)] = table
    for number, node in enumerate(nodes, 1):
        _emit(head, node, number)
        if isinstance(node.inode, Directory):
            node.children.clear()  # `.` and `..` would keep all nodes alive until the next collection
    return PlainImage(bytes(head), tuple(files), block * BLOCK, len(nodes))


def _collect(tree: Directory) -> list[_Node]:
    """Return the inodes, breadth first: each directory before what is in it."""
    top = _Node(inode=tree, nlink=2)
    nodes = [top]
    leaves: dict[int, _Node] = {}
    level: list[tuple[_Node, _Node, Directory]] = [(top, top, tree)]
    for _ in range(DEPTH_MAX):
        following: list[tuple[_Node, _Node, Directory]] = []
        for node, parent, inode in level:
            node.children = [(b".", node), (b"..", parent)]
            for name, entry in sorted(inode.entries.items()):
                _check_name(name)
                child = leaves.get(id(entry))
                if child is not None:
                    child.nlink += 1
                else:
                    child = _Node(inode=entry)
                    nodes.append(child)
                    if isinstance(entry, Directory):
                        child.nlink = 2
                        node.nlink += 1
                        following.append((child, node, entry))
                    else:
                        leaves[id(entry)] = child
                node.children.append((name, child))
            node.children.sort(key=lambda item: item[0])
        level = following
        if not level:
            return nodes
    raise LimitError(f"directories are nested more than {DEPTH_MAX} deep")


def _check_name(name: bytes) -> None:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > directory.NAME_MAX:
        raise FormatError(f"not a file name: {name[:300]!r}")


def _share_xattrs(nodes: list[_Node]) -> bytes:
    """Give every node its xattr area, and return the table of what several have; it stands where inodes could begin."""
    counts = Counter(pair for node in nodes for pair in node.inode.meta.xattrs.items())
    numbers: dict[Pair, int] = {}
    entries: list[bytes] = []
    at = INODES_OFFSET
    for pair, count in sorted(counts.items()):
        entry = _xattr(pair)
        if count > 1 and at + len(entry) <= SHARED_MAX:
            numbers[pair] = at // 4
            entries.append(entry)
            at += len(entry)
    areas: dict[tuple[Pair, ...], bytes] = {}
    for node in nodes:
        pairs = tuple(sorted(node.inode.meta.xattrs.items()))
        if pairs not in areas:
            areas[pairs] = _area(pairs, numbers) if pairs else b""
        node.area = areas[pairs]
    return b"".join(entries)


def _xattr(pair: Pair) -> bytes:
    name, value = pair
    if not name or b"\0" in name or len(name) > xattrs.NAME_MAX or len(value) > xattrs.VALUE_MAX:
        raise FormatError(f"the xattr {name[:300]!r} with a value of {len(value)} bytes cannot be stored")
    return xattrs.encode_entry(*xattrs.split_name(name, lustre=True), value)


def _area(pairs: tuple[Pair, ...], numbers: Mapping[Pair, int]) -> bytes:
    shared = [numbers[pair] for pair in pairs if pair in numbers][: xattrs.SHARED_COUNT_MAX]
    chosen = set(shared)
    header = xattrs.encode_header([xattrs.split_name(name, lustre=True) for name, _ in pairs], shared)
    area = b"".join([header, *(_xattr(pair) for pair in pairs if numbers.get(pair) not in chosen)])
    if len(area) > BLOCK:
        raise LimitError(f"the xattrs of an inode take {len(area)} bytes, at most {BLOCK} are written")
    return area


def _measure(node: _Node) -> None:
    """Set size, blocks and tail: objects are no part of the head, and have neither."""
    match node.inode:
        case Directory():
            node.splits, node.tail = directory.split([name for name, _ in node.children])
            node.blocks = len(node.splits)
            node.size = node.blocks * BLOCK + node.tail
        case File(content=External() as content):
            node.size = content.size
        case File(content=Sparse()):
            raise FormatError("a file of the tree has a size and no content")
        case File(content=bytes() as data) | Symlink(target=data):
            node.data, node.size = data, len(data)
            node.blocks, node.tail = divmod(node.size, BLOCK)
            if node.tail > TAIL_MAX:
                node.blocks, node.tail = node.blocks + 1, 0


def _place(node: _Node, at: int) -> int:
    """Choose the inode's place from `at` on: neither its head with the xattrs nor its tail may cross a block."""
    at = -(-at // SLOT) * SLOT
    length = _INODE.size + len(node.area) + node.tail
    if length > BLOCK:
        node.blocks, node.tail = node.blocks + 1, 0
        if isinstance(node.inode, Directory):
            node.splits.append(len(node.children))
            node.size = node.blocks * BLOCK
        length = _INODE.size + len(node.area)
    elif at // BLOCK != (at + length - 1) // BLOCK:
        at = -(-at // BLOCK) * BLOCK
    node.nid = at // SLOT
    return at + length


def _emit(head: bytearray, node: _Node, number: int) -> None:
    meta = node.inode.meta
    if meta.mode >> 12 or (meta.uid | meta.gid) >> 32 or not -(1 << 63) <= meta.mtime < 1 << 63:
        raise FormatError(f"mode {meta.mode:o}, uid {meta.uid}, gid {meta.gid} or time {meta.mtime} is out of range")
    at = node.nid * SLOT
    layout = FLAT_INLINE if node.tail else FLAT_PLAIN
    u = node.inode.rdev if isinstance(node.inode, Device) else node.block
    _INODE.pack_into(
        head, at, 1 | layout << 1, xattrs.icount(len(node.area)) if node.area else 0, file_type(node.inode) | meta.mode,
        0, node.size, u, number, meta.uid, meta.gid, meta.mtime, meta.mtime_nsec, node.nlink, b"",
    )  # fmt: skip
    at += _INODE.size
    head[at : at + len(node.area)] = node.area
    at += len(node.area)
    start = node.block * BLOCK
    if isinstance(node.inode, Directory):
        begin = 0
        for end in node.splits:
            block = _entries(node, begin, end)
            head[start : start + len(block)] = block
            start += BLOCK
            begin = end
        tail = _entries(node, begin, len(node.children)) if node.tail else b""
    else:
        whole = len(node.data) - node.tail
        head[start : start + whole] = node.data[:whole]
        tail = node.data[whole:]
    head[at : at + len(tail)] = tail


def _entries(node: _Node, begin: int, end: int) -> bytes:
    entries = node.children[begin:end]
    types = [FILE_TYPES[file_type(child.inode)] for _, child in entries]
    return directory.pack([name for name, _ in entries], [child.nid for _, child in entries], types)
