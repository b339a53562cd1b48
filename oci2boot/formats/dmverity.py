"""dm-verity: the superblock and the hash tree over the blocks of a device, and the root hash that stands for all of it.

Linux, Documentation/admin-guide/device-mapper/verity.rst, hash type 1 (the salt comes first); cryptsetup,
lib/verity/verity.c for the superblock. The area is a superblock, then the levels of the tree, root level first.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

from oci2boot.digest import HEX_LENGTH, Hash, RootHash, parse_hash
from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.binary import U16, U32, U64, Record

SUPERBLOCK_SIZE: Final = 512
SALT_MAX: Final = 256
BLOCK_SIZES: Final = (512, 1024, 2048, 4096)
"""What Linux takes whatever the page size of the machine is."""
DATA_MAX: Final = 1 << 46
"""Bytes; 64 TiB has a tree of half a terabyte."""

NO_UUID: Final = UUID(int=0)

_MAGIC: Final = b"verity\0\0"


@dataclass(frozen=True, slots=True)
class Superblock(Record):
    """`struct verity_sb`."""

    signature: Annotated[bytes, "8s"]
    version: U32
    hash_type: U32
    uuid: Annotated[bytes, "16s"]
    algorithm: Annotated[bytes, "32s"]
    data_block_size: U32
    hash_block_size: U32
    data_blocks: U64
    salt_size: U16
    pad: Annotated[bytes, "6s"]
    salt: Annotated[bytes, "256s"]
    reserved: Annotated[bytes, "168s"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the root hash depends on besides the data."""

    algorithm: Hash = "sha256"
    salt: bytes = b""
    data_block: int = 4096
    hash_block: int = 4096
    uuid: UUID = NO_UUID
    """Of the area; the root hash does not cover it."""

    def __post_init__(self) -> None:
        if self.algorithm not in HEX_LENGTH:
            raise FormatError(f"not a hash function of dm-verity: {self.algorithm!r}")
        if len(self.salt) > SALT_MAX:
            raise FormatError(f"a salt of {len(self.salt)} bytes, dm-verity takes {SALT_MAX}")
        for size in (self.data_block, self.hash_block):
            if size not in BLOCK_SIZES:
                known = ", ".join(map(str, BLOCK_SIZES))
                raise FormatError(f"not a block size of dm-verity: {size}", hint=f"known are {known}")

    @property
    def slot(self) -> int:
        """Bytes that one hash takes in a block of the tree."""
        return HEX_LENGTH[self.algorithm] // 2

    @property
    def fan_out(self) -> int:
        """Hashes in one block of the tree."""
        return self.hash_block // self.slot


@dataclass(frozen=True, slots=True)
class Area:
    """The hash area of a device, measured before it is written: offsets and sizes in bytes."""

    parameters: Parameters
    data_blocks: int
    levels: tuple[int, ...]
    """Blocks of each level, root level first; none for data of one block, whose hash is the root hash."""

    @property
    def size(self) -> int:
        return (1 + sum(self.levels)) * self.parameters.hash_block

    def superblock(self) -> bytes:
        """Return the first block of the area."""
        parameters = self.parameters
        record = Superblock(
            _MAGIC, 1, 1, parameters.uuid.bytes, parameters.algorithm.encode(), parameters.data_block,
            parameters.hash_block, self.data_blocks, len(parameters.salt), b"", parameters.salt, b"",
        )  # fmt: skip
        return record.pack().ljust(parameters.hash_block, b"\0")


def plan_area(data_size: int, parameters: Parameters) -> Area:
    """Return the area for `data_size` bytes of data, which have to be whole blocks."""
    blocks, rest = divmod(data_size, parameters.data_block)
    if rest or blocks < 1:
        raise FormatError(f"dm-verity takes whole blocks of {parameters.data_block} bytes, not {data_size} bytes")
    if data_size > DATA_MAX:
        raise LimitError(f"{data_size} bytes of data, at most {DATA_MAX} are hashed")
    levels: list[int] = []
    count = blocks
    while count > 1:
        count = -(-count // parameters.fan_out)
        levels.append(count)
    return Area(parameters, blocks, tuple(reversed(levels)))


def hash_blocks(data: bytes | memoryview, parameters: Parameters, block: int) -> bytes:
    """Return the hashes of whole blocks, one after the other."""
    view = memoryview(data)
    if len(view) % block:
        raise FormatError(f"{len(view)} bytes are not whole blocks of {block}")
    salted = hashlib.new(parameters.algorithm, parameters.salt)
    copy = salted.copy
    hashes = []
    for at in range(0, len(view), block):
        hasher = copy()
        hasher.update(view[at : at + block])
        hashes.append(hasher.digest())
    return b"".join(hashes)


def hash_tree(leaves: bytes, area: Area) -> tuple[RootHash, list[bytes]]:
    """Return the root hash, and the blocks of each level of the tree, root level first.

    `leaves` are the hashes of all data blocks, in order, as `hash_blocks` gives them.
    """
    parameters = area.parameters
    if len(leaves) != area.data_blocks * parameters.slot:
        raise FormatError(f"{len(leaves)} bytes of hashes, {area.data_blocks} blocks have another number")
    levels: list[bytes] = []
    hashes = leaves
    while len(hashes) > parameters.slot:
        level = hashes + bytes(-len(hashes) % parameters.hash_block)
        levels.append(level)
        hashes = hash_blocks(level, parameters, parameters.hash_block)
    return RootHash(parameters.algorithm, hashes), levels[::-1]


def read_superblock(block: bytes) -> Area:
    """Return the area that begins with this block. Raises `FormatError` for any other bytes."""
    record = Superblock.unpack(block)
    if record.signature != _MAGIC:
        raise FormatError("there is no dm-verity superblock")
    if (record.version, record.hash_type) != (1, 1):
        raise FormatError(f"dm-verity version {record.version}, hash type {record.hash_type}: only 1 and 1 are read")
    if record.salt_size > SALT_MAX:
        raise FormatError(f"the dm-verity superblock has a salt of {record.salt_size} bytes")
    parameters = Parameters(
        parse_hash(record.algorithm.rstrip(b"\0").decode("ascii", "replace")),
        record.salt[: record.salt_size],
        record.data_block_size,
        record.hash_block_size,
        UUID(bytes=record.uuid),
    )
    area = plan_area(record.data_blocks * parameters.data_block, parameters)
    if area.superblock()[:SUPERBLOCK_SIZE] != block[:SUPERBLOCK_SIZE]:
        raise FormatError("the dm-verity superblock has bytes where there should be none")
    return area


def check_tree(area: Area, leaves: bytes, read: Callable[[int, int], bytes], root_hash: RootHash) -> Iterator[str]:
    """Yield what is wrong with an area on a disk, a sentence each: the superblock is taken as read.

    `leaves` are computed from the data; `read` takes (byte offset within the area, size).
    """
    computed, levels = hash_tree(leaves, area)
    if computed != root_hash:
        yield f"the data has the root hash {computed}, promised is {root_hash}"
    at = area.parameters.hash_block
    for number, level in enumerate(levels):
        found = read(at, len(level))
        if found != level:
            first = next((i for i, (a, b) in enumerate(zip(found, level, strict=False)) if a != b), len(found))
            yield f"level {number} of the hash tree is not that of the data, from byte {at + first} of the hash area"
        at += len(level)
