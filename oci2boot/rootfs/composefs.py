"""A tree as a composefs image: EROFS metadata whose fs-verity digest stands for every byte of the tree.

The bytes are those of other tools: C mkcomposefs (libcomposefs/lcfs-writer-erofs.c) for V0 and V1, composefs-rs
(erofs/writer.rs) for V2. An image is planned in three steps, `inodes`, `sharing` and `placement`, then emitted here.
"""

import gc
from dataclasses import dataclass

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import LimitError
from oci2boot.formats import fsverity
from oci2boot.formats.erofs import directory
from oci2boot.formats.erofs.structs import (
    BLOCK,
    CHUNK_BASED,
    COMPOSEFS_MAGIC,
    EROFS_MAGIC,
    FEATURE_COMPAT_MTIME,
    FEATURE_COMPAT_XATTR_FILTER,
    HEADER_HAS_ACL,
    IMAGE_MAX,
    NULL_CHUNK,
    SLOT,
    SUPERBLOCK_OFFSET,
    CompactInode,
    ComposefsHeader,
    ExtendedInode,
    Superblock,
)
from oci2boot.rootfs import overlay
from oci2boot.rootfs.inodes import Node, Version, collect, is_whiteout
from oci2boot.rootfs.placement import DIRECTORY, place_v1, place_v2
from oci2boot.rootfs.sharing import Sharing
from oci2boot.tree.model import Directory, walk


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A composefs image and the digest that boots it."""

    image: bytes
    digest: VerityDigest
    version: Version
    inodes: int


def build_rootfs(tree: Directory, version: Version = 1, algorithm: Hash = "sha256") -> Rootfs:
    """Return the image of `tree` in the given format; its digests, and the digest of the image, are of `algorithm`."""
    # Hundreds of thousands of objects, none of them garbage before the end: collecting takes half of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _build(tree, version, algorithm)
    finally:
        if collecting:
            gc.enable()


def _build(tree: Directory, version: Version, algorithm: Hash) -> Rootfs:
    nodes = collect(tree, version, algorithm)
    sharing = Sharing(nodes, version, algorithm)
    minimum = (0, 0) if version == 2 else min([(node.meta.mtime, node.meta.mtime_nsec) for node in nodes])
    inodes_end = place_v2(nodes) if version == 2 else place_v1(nodes, minimum)

    table_offset = (inodes_end + SLOT - 1) & -SLOT
    data_block = (table_offset + sharing.table_size + BLOCK - 1) // BLOCK
    block = data_block
    for node in nodes:
        node.block = block
        block += node.blocks
    size = block * BLOCK
    if size > IMAGE_MAX:
        raise LimitError(f"the composefs image would be {size} bytes, at most {IMAGE_MAX} can be read")

    image = bytearray(size)
    table = sharing.encode(table_offset)
    image[table_offset : table_offset + len(table)] = table
    has_acl = sharing.has_acl and version != 2
    header = ComposefsHeader(COMPOSEFS_MAGIC, 1, HEADER_HAS_ACL if has_acl else 0, version).pack()
    superblock = Superblock(
        magic=EROFS_MAGIC,
        checksum=0,
        feature_compat=FEATURE_COMPAT_MTIME | FEATURE_COMPAT_XATTR_FILTER,
        blkszbits=12,
        sb_extslots=0,
        root_nid=nodes[0].nid,
        inos=len(nodes),
        build_time=minimum[0],
        build_time_nsec=minimum[1],
        blocks=block,
        meta_blkaddr=0,
        xattr_blkaddr=0 if version == 2 else table_offset // BLOCK,
    ).pack()
    image[: len(header)] = header
    image[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + len(superblock)] = superblock
    _emit(image, nodes, version)
    return Rootfs(bytes(image), fsverity.measure(image, algorithm), version, len(nodes))


def default_c_version(tree: Directory) -> Version:
    """Return the format that C mkcomposefs chooses without options: V0, but V1 for a tree with whiteouts."""
    return 1 if any(is_whiteout(inode) for _, inode in walk(tree)) else 0


def _emit(image: bytearray, nodes: list[Node], version: Version) -> None:
    pack_compact = CompactInode.layout().pack_into
    pack_extended = ExtendedInode.layout().pack_into
    for index, node in enumerate(nodes):
        meta, area = node.meta, node.area
        at = node.nid * SLOT
        u = node.u
        if node.blocks:
            # C mkcomposefs writes the chunk format over the low half of the block number.
            u = u | node.block & 0xFFFF0000 if node.layout == CHUNK_BASED else node.block
        if node.extended:
            nsec, ino = (0, node.nid) if version == 2 else (meta.mtime_nsec, index)
            pack_extended(
                image, at, 1 | node.layout << 1, area.icount, node.mode, 0, node.size, u, ino,
                meta.uid, meta.gid, meta.mtime, nsec, node.nlink, b"",
            )  # fmt: skip
            at += 64
        else:
            pack_compact(
                image, at, node.layout << 1, area.icount, node.mode, node.nlink, node.size, 0, u, index,
                meta.uid, meta.gid, 0,
            )  # fmt: skip
            at += 32
        if area.size:
            image[at : at + area.size] = area.encoded
            if area.template and node.digest:
                raw, redirect = node.digest.raw, overlay.redirect(node.digest)
                digest_at, redirect_at = at + area.digest_at, at + area.redirect_at
                image[digest_at : digest_at + len(raw)] = raw
                image[redirect_at : redirect_at + len(redirect)] = redirect
            at += area.size
        if node.blocks or node.tail:
            _emit_content(image, node, at)
    for node in nodes:
        if node.type == DIRECTORY:
            node.entries.clear()  # `.` and `..` would keep all nodes alive until the next collection


def _emit_content(image: bytearray, node: Node, tail_at: int) -> None:
    at = node.block * BLOCK
    if node.type == DIRECTORY:
        start = 0
        for end in node.splits:
            block = _entries(node, start, end)
            image[at : at + len(block)] = block
            at += BLOCK
            start = end
        if node.tail:
            image[tail_at : tail_at + node.tail] = _entries(node, start, len(node.entries))
    elif node.layout == CHUNK_BASED:
        image[tail_at : tail_at + node.tail] = NULL_CHUNK * (node.tail // 4)
        image[at : at + node.blocks * BLOCK] = NULL_CHUNK * (node.blocks * BLOCK // 4)
    else:
        whole = len(node.data) - node.tail
        image[at : at + whole] = node.data[:whole]
        image[tail_at : tail_at + node.tail] = node.data[whole:]


def _entries(node: Node, start: int, end: int) -> bytes:
    entries = node.entries[start:end]
    return directory.pack(
        [name for name, _ in entries], [child.nid for _, child in entries], [child.type for _, child in entries]
    )
