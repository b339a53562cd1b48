"""Reading an ext4 file system without mounting it: its files, their attributes and their fs-verity metadata.

Every checksum that is read past is checked, and every walk is bounded, whatever the bytes say.
"""

import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats import ext4
from oci2boot.formats.ext4 import Extent, ExtentHeader, ExtentIndex, ExtentLeaf, GroupDescriptor, Inode, Superblock
from oci2boot.formats.ext4_blocks import TAIL, leaf_checksum, parse_directory_block
from oci2boot.formats.ext4_xattr import seal_xattr_block, unpack_xattrs
from oci2boot.formats.fsverity import DESCRIPTOR_SIZE

GROUPS_MAX: Final = 1 << 20
"""128 TiB of 4096-byte blocks."""
ENTRIES_MAX: Final = 1 << 24
PATH_MAX: Final = 1 << 16
FILE_MAX: Final = 1 << 44
"""What ext4 itself allows with 4096-byte blocks."""
DIRECTORY_MAX: Final = 1 << 30
SYMLINK_MAX: Final = 4096
EXTENTS_MAX: Final = 1 << 20
CHUNK: Final = 1 << 20
_KNOWN_INCOMPAT: Final = (
    ext4.FILETYPE | ext4.EXTENTS | ext4.BIT64 | ext4.FLEX_BG | ext4.CSUM_SEED | ext4.LARGE_DIR | ext4.NEEDS_RECOVERY
)

Read = Callable[[int, int], bytes]
"""(byte offset, size) to the bytes there, fewer only past the end."""


class VerityMetadata(NamedTuple):
    """What the kernel holds a file to, byte for byte as FS_IOC_READ_VERITY_METADATA gives it."""

    tree: bytes
    descriptor: bytes


class Ext4:
    """An ext4 file system with extents and metadata checksums, at offset 0 of what `read` reads."""

    def __init__(self, read: Read) -> None:
        raw = read(ext4.SUPERBLOCK_OFFSET, Superblock.layout().size)
        self.superblock = Superblock.unpack(raw)
        _check_superblock(self.superblock)
        self.block_size = self.superblock.block_size
        self.seed = self.superblock.seed
        self._read = read
        self.groups = self._read_groups()

    def _read_groups(self) -> list[GroupDescriptor]:
        count = self.superblock.group_count
        raw = self._bytes((self.superblock.first_data_block + 1) * self.block_size, count * 64)
        groups = [GroupDescriptor.unpack(raw, 64 * number) for number in range(count)]
        for number, group in enumerate(groups):
            if group.sealed(self.seed, number).checksum != group.checksum:
                raise FormatError(f"the descriptor of block group {number} has a wrong checksum")
        return groups

    def _bytes(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise FormatError(f"the file system is cut short at byte {offset + len(data)}")
        return data

    def blocks(self, start: int, count: int = 1) -> bytes:
        if start < self.superblock.first_data_block or start + count > self.superblock.blocks_count:
            raise FormatError(f"block {start} lies outside of the file system")
        return self._bytes(start * self.block_size, count * self.block_size)

    def raw_inode(self, number: int) -> bytes:
        """Return the inode's bytes, its checksum checked."""
        if not 1 <= number <= self.superblock.inodes_count:
            raise FormatError(f"there is no inode {number}")
        group, index = divmod(number - 1, self.superblock.inodes_per_group)
        offset = self.groups[group].inode_table * self.block_size + index * self.superblock.inode_size
        raw = self._bytes(offset, self.superblock.inode_size)
        inode = Inode.unpack(raw)
        promised = inode.checksum_hi << 16 | inode.checksum_lo
        if ext4.inode_checksum(ext4.inode_seed(self.seed, number, inode.generation), raw) != promised:
            raise FormatError(f"inode {number} has a wrong checksum")
        return raw

    def inode(self, number: int) -> Inode:
        return Inode.unpack(self.raw_inode(number))

    def walk(self) -> Iterator[tuple[bytes, int, Inode]]:
        """Yield (path, inode number, inode) depth first, a directory before its content; the root is `/`."""
        stack = [(b"/", ext4.ROOT_INODE)]
        seen: set[int] = set()
        count = 0
        while stack:
            path, number = stack.pop()
            count += 1
            if count > ENTRIES_MAX:
                raise LimitError(f"the file system has more than {ENTRIES_MAX} names")
            if len(path) > PATH_MAX:
                raise LimitError(f"the file system has a path of more than {PATH_MAX} bytes")
            inode = self.inode(number)
            yield path, number, inode
            if inode.file_type == stat.S_IFDIR:
                if number in seen:
                    raise FormatError(f"the directory {path!r} has two names")
                seen.add(number)
                prefix = path.rstrip(b"/") + b"/"
                entries = sorted(self.directory(number), reverse=True)
                stack += [(prefix + name, child) for name, child in entries]

    def directory(self, number: int) -> list[tuple[bytes, int]]:
        """Return the (name, inode number) pairs of a directory, in disk order."""
        inode = self.inode(number)
        if inode.file_type != stat.S_IFDIR or inode.size > DIRECTORY_MAX or inode.size % self.block_size:
            raise FormatError(f"inode {number} is not a readable directory")
        data = b"".join(self.content(number))
        seed = ext4.inode_seed(self.seed, number, inode.generation)
        blocks = [data[at : at + self.block_size] for at in range(0, len(data), self.block_size)]
        for block in blocks:
            promised = leaf_checksum(block)
            # The inner blocks of a hash tree have theirs elsewhere, and read as one empty entry.
            if promised is None and inode.flags & ext4.FLAG_INDEX:
                continue
            if promised != ext4.crc32c(seed, block[:-TAIL]):
                raise FormatError(f"the directory {number} has a wrong checksum")
        return [entry for block in blocks for entry in parse_directory_block(block)]

    def find(self, path: bytes) -> int | None:
        """Return the inode number at an absolute `path`, following no symlink; None where nothing is."""
        number = ext4.ROOT_INODE
        for name in filter(None, path.split(b"/")):
            if self.inode(number).file_type != stat.S_IFDIR:
                return None
            found = dict(self.directory(number)).get(name)
            if found is None:
                return None
            number = found
        return number

    def extents(self, number: int) -> list[Extent]:
        """Return the extents of an inode in logical order; unwritten ones, which read as zeros, are left out."""
        inode = self.inode(number)
        if not inode.flags & ext4.FLAG_EXTENTS:
            raise FormatError(f"inode {number} has no extents")
        seed = ext4.inode_seed(self.seed, number, inode.generation)
        extents: list[Extent] = []
        self._collect(inode.block, ext4.EXTENT_DEPTH_MAX, seed, extents)
        end = 0
        for extent in extents:
            if extent.logical < end:
                raise FormatError(f"the extents of inode {number} overlap")
            end = extent.logical + abs(extent.length)
        return [extent for extent in extents if extent.length > 0]

    def _collect(self, node: bytes, depth_max: int, seed: int, found: list[Extent]) -> None:
        header = ExtentHeader.unpack(node)
        if header.magic != ext4.EXTENT_MAGIC or header.depth > depth_max or header.entries > (len(node) - 12) // 12:
            raise FormatError("a node of an extent tree that cannot be read")
        for at in range(12, 12 + 12 * header.entries, 12):
            if header.depth:
                index = ExtentIndex.unpack(node, at)
                child = self.blocks(index.child_hi << 32 | index.child_lo)
                if int.from_bytes(child[-4:], "little") != ext4.crc32c(seed, child[:-4]):
                    raise FormatError("a node of an extent tree has a wrong checksum")
                below = ExtentHeader.unpack(child)
                if below.depth != header.depth - 1 or not below.entries:
                    raise FormatError("a node of an extent tree is empty or at the wrong depth")
                self._collect(child, header.depth - 1, seed, found)
            else:
                leaf = ExtentLeaf.unpack(node, at)
                unwritten = leaf.length > ext4.EXTENT_MAX_LENGTH
                length = ext4.EXTENT_MAX_LENGTH - leaf.length if unwritten else leaf.length
                found.append(Extent(leaf.logical, leaf.physical_hi << 32 | leaf.physical_lo, length))  # unwritten: < 0
            if len(found) > EXTENTS_MAX:
                raise LimitError(f"a file has more than {EXTENTS_MAX} extents")

    def content(self, number: int, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file, in pieces of at most 1 MiB; without `size`, to the end of the file.

        A range past the end of the file is what lies there on disk: of a verity file, its metadata.
        """
        at = offset
        end = self.inode(number).size if size is None else offset + size
        if end > FILE_MAX:
            raise LimitError(f"inode {number} claims to have {end} bytes")
        for extent in [*self.extents(number), Extent(1 << 62, 0, 0)]:
            start = extent.logical * self.block_size
            while at < min(start, end):
                hole = bytes(min(start - at, end - at, CHUNK))
                yield hole
                at += len(hole)
            stop = min(start + extent.length * self.block_size, end)
            while start <= at < stop:
                wanted = min(stop - at, CHUNK)
                first, skip = divmod(at - start, self.block_size)
                data = self.blocks(extent.physical + first, -(-(skip + wanted) // self.block_size))
                yield data[skip : skip + wanted]
                at += wanted

    def symlink(self, number: int) -> bytes:
        """Return the target of a symbolic link."""
        inode = self.inode(number)
        if inode.file_type != stat.S_IFLNK or inode.size > SYMLINK_MAX:
            raise FormatError(f"inode {number} is not a readable symbolic link")
        if not inode.flags & ext4.FLAG_EXTENTS:
            return inode.block[: inode.size]
        return b"".join(self.content(number))

    def xattrs(self, number: int) -> dict[bytes, bytes]:
        raw = self.raw_inode(number)
        inode = Inode.unpack(raw)
        xattrs = unpack_xattrs(raw[128 + inode.extra_size :], block=False)
        if inode.xattr_block:
            block = self.blocks(inode.xattr_block)
            plain = block[:16] + bytes(4) + block[20:]
            if seal_xattr_block(plain, self.seed, inode.xattr_block) != block:
                raise FormatError(f"the attribute block of inode {number} has a wrong checksum")
            xattrs |= unpack_xattrs(block, block=True)
        return xattrs

    def verity(self, number: int) -> VerityMetadata | None:
        """Return a file's Merkle tree and descriptor; None for a file that is not a verity file."""
        inode = self.inode(number)
        if not inode.has_verity:
            return None
        start = -(-inode.size // ext4.VERITY_ALIGNMENT) * ext4.VERITY_ALIGNMENT
        last = (self.extents(number) or [Extent(0, 0, 0)])[-1]
        end = (last.logical + last.length) * self.block_size
        # With SHA-512, the tree is a sixty-third of the file; tree and descriptor are padded to blocks of up to 64 KiB.
        if end - start > inode.size // 32 + 3 * ext4.VERITY_ALIGNMENT:
            raise LimitError(f"inode {number} has {end - start} bytes of fs-verity metadata")
        metadata = b"".join(self.content(number, start, max(end - start, 0)))
        size = int.from_bytes(metadata[-4:], "little")
        at = (len(metadata) - 4 - size) // self.block_size * self.block_size
        if len(metadata) < self.block_size or size != DESCRIPTOR_SIZE or at < 0:
            raise FormatError(f"inode {number} has no fs-verity descriptor that can be read")
        return VerityMetadata(metadata[:at], metadata[at : at + size])


def _check_superblock(superblock: Superblock) -> None:
    if superblock.magic != ext4.MAGIC:
        raise FormatError("not an ext4 file system")
    if superblock.sealed().checksum != superblock.checksum:
        raise FormatError("the superblock has a wrong checksum")
    needed = ext4.EXTENTS | ext4.BIT64
    if (
        superblock.incompat & ~_KNOWN_INCOMPAT
        or superblock.incompat & needed != needed
        or not superblock.ro_compat & ext4.METADATA_CSUM
    ):
        raise FormatError(
            f"an ext4 file system with features that are not known here: {superblock.incompat:#x}",
            hint="extents, 64-bit block numbers and metadata checksums are needed",
        )
    if superblock.incompat & ext4.NEEDS_RECOVERY:
        raise FormatError(
            "the file system was not unmounted, and its journal holds changes",
            hint="mount it once, or run e2fsck on a copy",
        )
    plausible = (
        superblock.log_block_size <= 6
        and superblock.descriptor_size == 64
        and 0 < superblock.blocks_per_group <= 8 * superblock.block_size
        and 0 < superblock.inodes_per_group <= 8 * superblock.block_size
        and 160 <= superblock.inode_size <= superblock.block_size
        and superblock.first_data_block < superblock.blocks_count
        and superblock.group_count <= GROUPS_MAX
        and superblock.inodes_count <= superblock.group_count * superblock.inodes_per_group
    )
    if not plausible:
        raise FormatError("the superblock contradicts itself")
