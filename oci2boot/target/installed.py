"""The physical root of an installed disk, read out of its ext4 without a mount: repository, objects, state."""

import hashlib
import stat
from collections.abc import Callable, Iterator
from typing import Final

from oci2boot.digest import VerityDigest
from oci2boot.errors import DigestError, FormatError, LimitError
from oci2boot.formats.ext4_reader import Ext4
from oci2boot.formats.fsverity import Hasher, measure

OBJECT_MAX: Final = 1 << 35
"""Bytes: hashing holds 64 for every 4096 of them, so half a gigabyte for an object of 32 GiB."""

_REPOSITORY: Final = b"/composefs"
_REFS: Final = b"refs"


class InstalledRoot:
    """May be read from several threads."""

    def __init__(self, fs: Ext4) -> None:
        self._fs = fs

    def objects(self) -> dict[VerityDigest, int]:
        """Return the inode number of each object in the repository."""
        objects = {}
        for folder, number in self.listing(_REPOSITORY + b"/objects").items():
            for name, inode in self._entries(number):
                path = f"{folder.decode(errors='replace')}/{name.decode(errors='replace')}"
                digest = VerityDigest.parse(path.replace("/", ""))
                if digest.path != path:
                    raise FormatError(f"/composefs/objects/{path} is not an object")
                objects[digest] = inode
        return objects

    def images(self) -> dict[str, VerityDigest]:
        """Return the object that each name in the repository's images/ links to."""
        return self._links("images")

    def streams(self) -> dict[str, VerityDigest]:
        """Return the object that each name in the repository's streams/ links to."""
        return self._links("streams")

    def _links(self, area: str) -> dict[str, VerityDigest]:
        links = {}
        for name, number in self.listing(f"{_REPOSITORY.decode()}/{area}".encode()).items():
            if name != _REFS:
                target = self._fs.symlink(number).decode(errors="replace")
                digest = VerityDigest.parse("".join(target.split("/")[-2:]))
                if target != f"../objects/{digest.path}":
                    raise FormatError(f"/composefs/{area}/{name.decode(errors='replace')} links to {target!r}")
                links[name.decode(errors="replace")] = digest
        return links

    def listing(self, path: bytes) -> dict[bytes, int]:
        """Return {name: inode number} of a directory; nothing where there is none."""
        number = self._fs.find(path)
        return dict(self._entries(number)) if number is not None else {}

    def find(self, path: bytes) -> int | None:
        return self._fs.find(path)

    def size(self, number: int) -> int:
        return self._fs.inode(number).size

    def content(self, number: int, limit: int) -> bytes:
        """Return a regular file of at most `limit` bytes."""
        inode = self._fs.inode(number)
        if inode.file_type != stat.S_IFREG:
            raise FormatError(f"inode {number} is not a regular file")
        if inode.size > limit:
            raise LimitError(f"inode {number} has {inode.size} bytes, at most {limit} are read")
        return b"".join(self._fs.content(number))

    def object(self, digest: VerityDigest, limit: int) -> bytes:
        """Return an object's content, checked against its name."""
        number = self._fs.find(f"/composefs/objects/{digest.path}".encode())
        if number is None:
            raise FormatError(f"object {digest} is missing from the disk")
        data = self.content(number, limit)
        if measure(data, digest.algorithm) != digest:
            raise DigestError(f"object {digest} is damaged")
        return data

    def object_problems(
        self, number: int, digest: VerityDigest, size: int | None, progress: Callable[[int], None]
    ) -> list[str]:
        """Read an object and say what keeps the kernel from taking it: content, and fs-verity's flag and metadata.

        `size` is what the rootfs image promises; `progress` is told the bytes read since its last call.
        """
        inode = self._fs.inode(number)
        if inode.file_type != stat.S_IFREG:
            return ["it is not a regular file"]
        if inode.size > OBJECT_MAX:
            return [f"it has {inode.size} bytes, at most {OBJECT_MAX} are read"]
        problems = []
        if size is not None and inode.size != size:
            problems.append(f"it has {inode.size} bytes, the rootfs image says {size}")
        hasher = Hasher(digest.algorithm)
        for piece in self._fs.content(number):
            hasher.update(piece)
            progress(len(piece))
        tree, descriptor = hasher.metadata()
        intact = _named_by(descriptor, digest)
        if not intact:
            problems.append(f"its bytes measure {hashlib.new(digest.algorithm, descriptor).hexdigest()}")
        found = self._fs.verity(number)
        if found is None:
            problems.append("it has no fs-verity: the flag of the inode is not set")
            return problems
        if not _named_by(found.descriptor, digest):
            problems.append("its fs-verity descriptor is not that of the object")
        if intact and found.tree != tree:
            problems.append(
                f"its Merkle tree is not that of its bytes, from byte {_first_difference(found.tree, tree)}"
            )
        return problems

    def _entries(self, number: int) -> Iterator[tuple[bytes, int]]:
        return (entry for entry in self._fs.directory(number) if entry[0] not in (b".", b".."))


def _named_by(descriptor: bytes, digest: VerityDigest) -> bool:
    return hashlib.new(digest.algorithm, descriptor).digest() == digest.raw


def _first_difference(found: bytes, expected: bytes) -> int:
    pairs = zip(found, expected, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(found), len(expected)))
