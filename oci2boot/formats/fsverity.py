"""fs-verity: the Merkle tree over a file's blocks and the descriptor that names it.

Linux, Documentation/filesystems/fsverity.rst, "fs-verity descriptor" and "Merkle tree": 4096-byte blocks, no salt.
"""

import hashlib
from collections.abc import Callable
from typing import Final

from oci2boot.digest import Hash, VerityDigest

BLOCK: Final = 4096
DESCRIPTOR_SIZE: Final = 256
_ALGORITHM_NUMBER: Final = {"sha256": 1, "sha512": 2}
_NEW: Final[dict[Hash, Callable[..., "hashlib._Hash"]]] = {"sha256": hashlib.sha256, "sha512": hashlib.sha512}


def hash_blocks(data: bytes | bytearray | memoryview, algorithm: Hash) -> bytes:
    """Return the hashes of the 4096-byte blocks of `data`, one after the other; the last is padded with zeros."""
    new = _NEW[algorithm]
    size = len(data)
    whole = size - size % BLOCK
    view = memoryview(data)
    hashes = [new(view[at : at + BLOCK]).digest() for at in range(0, whole, BLOCK)]
    if size > whole:
        hashes.append(new(bytes(view[whole:]).ljust(BLOCK, b"\0")).digest())
    return b"".join(hashes)


def _levels_above(leaves: bytes, algorithm: Hash) -> list[bytes]:
    """Return the levels of the tree from the leaf hashes up to the root hash (the last, one hash long)."""
    size = len(_NEW[algorithm]().digest())
    levels = [leaves]
    while len(levels[-1]) > size:
        levels.append(hash_blocks(levels[-1], algorithm))
    return levels


def descriptor(root_hash: bytes, size: int, algorithm: Hash) -> bytes:
    """Return `struct fsverity_descriptor` without a signature, 256 bytes."""
    head = bytes((1, _ALGORITHM_NUMBER[algorithm], 12, 0, 0, 0, 0, 0)) + size.to_bytes(8, "little")
    return (head + root_hash).ljust(DESCRIPTOR_SIZE, b"\0")


def _digest(root_hash: bytes, size: int, algorithm: Hash) -> VerityDigest:
    return VerityDigest(algorithm, _NEW[algorithm](descriptor(root_hash, size, algorithm)).digest())


def measure(data: bytes | bytearray | memoryview, algorithm: Hash = "sha256") -> VerityDigest:
    """Return the digest the kernel would report for a file with this content."""
    # An empty file has an all-zero root hash, not the hash of an empty block.
    root_hash = _levels_above(hash_blocks(data, algorithm), algorithm)[-1] if len(data) else b""
    return _digest(root_hash, len(data), algorithm)


class Hasher:
    """Measures a file that comes in pieces; memory grows by one hash per 4096 bytes."""

    def __init__(self, algorithm: Hash = "sha256") -> None:
        self.algorithm: Hash = algorithm
        self.size = 0
        self._rest = b""
        self._leaves: list[bytes] = []

    def update(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        if self._rest:
            data = self._rest + bytes(data)
        whole = len(data) - len(data) % BLOCK
        if whole:
            self._leaves.append(hash_blocks(memoryview(data)[:whole], self.algorithm))
        self._rest = bytes(data[whole:])

    def _finish(self) -> list[bytes]:
        if self._rest:
            self._leaves.append(hash_blocks(self._rest, self.algorithm))
            self._rest = b""
        self._leaves = [b"".join(self._leaves)]
        return _levels_above(self._leaves[0], self.algorithm) if self.size else [b""]

    def digest(self) -> VerityDigest:
        """Return the file's digest; nothing more may be added after it."""
        return _digest(self._finish()[-1], self.size, self.algorithm)

    def metadata(self) -> tuple[bytes, bytes]:
        """Return (Merkle tree, descriptor) as ext4 and f2fs keep them: root level first, each level padded to blocks.

        A file of at most one block has no tree: its root hash is the hash of that block.
        """
        levels = self._finish()
        tree = b"".join(level + bytes(-len(level) % BLOCK) for level in reversed(levels[:-1]))
        return tree, descriptor(levels[-1], self.size, self.algorithm)
