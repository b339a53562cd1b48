"""Copying files into the blocks that were chosen for them, their fs-verity metadata made on the way."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from oci2boot.digest import VerityDigest
from oci2boot.errors import DigestError, TargetError
from oci2boot.formats.fsverity import DESCRIPTOR_SIZE, Hasher
from oci2boot.target.entries import RootEntry, Source
from oci2boot.target.images import Part
from oci2boot.target.nodes import BLOCK
from oci2boot.target.placement import PlacedFile, Run
from oci2boot.target.plan import PlacedImage
from oci2boot.target.volume import Volume

Progress = Callable[[int], None]

_CHUNK: Final = 1 << 18
_ZEROS: Final = bytes(_CHUNK)
_WRITE: Final = 1 << 20
_BATCH: Final = 8 << 20
_WORKERS: Final = 2


class _Blocks:
    """Writes blocks in the order of the disk, many small files in one call.

    On a blank volume, large runs of zeros stay holes.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._buffer = bytearray()
        self._end = 0

    def write(self, runs: list[Run], data: bytes) -> None:
        """Write whole blocks to the first of the runs, which lie in the list last to first, and take them off it."""
        while data:
            start, length = runs.pop()
            part, data = data[: length * BLOCK], data[length * BLOCK :]
            if len(part) < length * BLOCK:
                used = len(part) // BLOCK
                runs.append(Run(start + used, length - used))
            if part != _ZEROS or not self._volume.leaves_zeros:
                self._put(start * BLOCK, part)

    def _put(self, offset: int, data: bytes) -> None:
        if offset != self._end or len(self._buffer) >= _WRITE:
            self.flush()
        self._end = offset + len(data)
        self._buffer += data

    def flush(self) -> None:
        if self._buffer:
            self._volume.write(self._end - len(self._buffer), self._buffer)
            self._buffer.clear()


def _read(source: Source) -> Iterator[bytes]:
    """Yield the content in pieces of whole blocks, the last one perhaps shorter."""
    if isinstance(source, bytes):
        yield from (source[at : at + _CHUNK] for at in range(0, len(source), _CHUNK))
        return
    fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for at in range(0, source.size, _CHUNK):
            data = os.pread(fd, min(_CHUNK, source.size - at), at)
            if len(data) != min(_CHUNK, source.size - at):
                raise TargetError(f"{source.path} became shorter while it was copied")
            yield data
        if os.fstat(fd).st_size != source.size:
            raise TargetError(f"{source.path} does not have the {source.size} bytes that were promised")
    finally:
        os.close(fd)


def _copy(file: PlacedFile, blocks: _Blocks) -> None:
    entry = file.node.entry
    runs = list(reversed(file.runs))
    hasher = Hasher(entry.verity.algorithm) if entry.verity else None
    for data in _read(entry.source):
        if hasher:
            hasher.update(data)
        blocks.write(runs, _whole(data))
    if entry.verity and hasher:
        blocks.write(runs, _verity_blocks(entry, hasher, entry.verity))


def _verity_blocks(entry: RootEntry, hasher: Hasher, promised: VerityDigest) -> bytes:
    """Return what follows the data: Merkle tree, descriptor at the start of a block, its size at that block's end.

    Linux, fs/ext4/verity.c, ext4_end_enable_verity().
    """
    tree, descriptor = hasher.metadata()
    _check(entry.path.decode(errors="replace"), descriptor, promised)
    return tree + descriptor.ljust(BLOCK - 4, b"\0") + DESCRIPTOR_SIZE.to_bytes(4, "little")


def _check(name: str, descriptor: bytes, promised: VerityDigest) -> None:
    found = hashlib.new(promised.algorithm, descriptor).digest()
    if found != promised.raw:
        raise DigestError(
            f"{name} should measure {promised}, its content measures {found.hex()}",
            hint="the object is damaged: fetch the image again",
        )


def _whole(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def _batches(files: Sequence[PlacedFile]) -> Iterator[list[PlacedFile]]:
    batch: list[PlacedFile] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.node.entry.size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def copy_files(files: Sequence[PlacedFile], volume: Volume, progress: Progress) -> None:
    """Write the files to the file system on the volume."""

    def copy_batch(batch: list[PlacedFile]) -> None:
        blocks = _Blocks(volume)
        for file in batch:
            _copy(file, blocks)
        blocks.flush()
        progress(sum(file.node.entry.size for file in batch))

    with ThreadPoolExecutor(_WORKERS) as workers:
        pending = [workers.submit(copy_batch, batch) for batch in _batches(files)]
        try:
            for one in pending:
                one.result()
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise


def copy_images(images: Sequence[PlacedImage], fd: int, progress: Progress, *, blank: bool) -> None:
    """Write the partitions whose bytes are given, and zeros behind those."""
    for image in images:
        volume, end = Volume(fd, image.partition.start, blank), 0
        for part in image.parts:
            volume.clear(end, part.offset - end)
            end = _copy_part(image.partition.label, part, volume, progress)
        volume.clear(end, image.partition.size - end)


def _copy_part(name: str, part: Part, volume: Volume, progress: Progress) -> int:
    """Copy, and return where the next block begins."""
    at = part.offset
    hasher = Hasher(part.digest.algorithm) if part.digest else None
    for data in _read(part.source):
        if hasher:
            hasher.update(data)
        blocks = _whole(data)
        if not volume.leaves_zeros or blocks.count(0) != len(blocks):
            volume.write(at, blocks)
        at += len(blocks)
        progress(len(data))
    if part.digest and hasher:
        _check(f"what goes into the partition {name}", hasher.metadata()[1], part.digest)
    return at
