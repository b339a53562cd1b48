"""A disk with slots that is there already, and how it is written: content, sync, another look at it, and only then
the names by which it is found. Stopped anywhere, it has every slot that nobody asked to replace.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.digest import RootHash
from oci2boot.errors import DigestError, FormatError, TargetError
from oci2boot.formats.fsverity import Hasher
from oci2boot.formats.gpt import Gpt, Partition, read_gpt
from oci2boot.formats.gpt_writer import Identity, plan_identities
from oci2boot.system.files import half_written, plain_errors
from oci2boot.target.copy import Progress, copy_images
from oci2boot.target.entries import source_size
from oci2boot.target.images import Part
from oci2boot.target.slots import EMPTY, SlotWrite
from oci2boot.target.types import SIGNATURE_TYPES
from oci2boot.target.volume import pwrite_all

SIGNATURE_MAX: Final = 16 << 10
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SlotDisk:
    fd: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def write(self, offset: int, data: bytes) -> None:
        pwrite_all(self.fd, data, offset)

    def sync(self) -> None:
        os.fsync(self.fd)

    def drop_cached(self, offset: int, size: int) -> None:
        """Have what is read next come from the medium."""
        os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_DONTNEED)

    def reader(self, part: Partition) -> Callable[[int, int], bytes]:
        """Return what reads (offset within the partition, size)."""
        return lambda offset, size: self.read(part.start + offset, max(min(size, part.size - offset), 0))

    def table(self) -> Gpt:
        return read_gpt(self.read, self.size)

    def signed(self, gpt: Gpt, parse: Callable[[bytes], RootHash]) -> Mapping[int, RootHash]:
        """Return the root hashes whose signatures are on the disk, by the number of the partition."""
        signatures = {}
        for part in gpt.partitions:
            if part.type in SIGNATURE_TYPES:
                with suppress(FormatError):
                    signatures[part.number] = parse(self.reader(part)(0, SIGNATURE_MAX))
        return signatures

    def fill(self, writes: Sequence[SlotWrite], unfinished: Callable[[str], str], progress: Progress) -> None:
        """Replace what is in the partitions; `unfinished` makes the GUIDs that they have meanwhile.

        Raises `DigestError` where an object is damaged, or the medium does not give back what was written.
        """
        self._name(
            {
                write.partition.number: Identity(unfinished(f"unfinished {number}"), EMPTY, write.image.attributes)
                for number, write in enumerate(writes)
            }
        )
        with half_written("the slot that is not booted"):
            copy_images([write.placed for write in writes], self.fd, progress, blank=False)
            self.sync()
            self.check(writes)
        self._name(
            {
                write.partition.number: Identity(write.image.guid, write.image.label, write.image.attributes)
                for write in writes
            }
        )

    def check(self, writes: Sequence[SlotWrite]) -> None:
        """Read the content of partitions from the medium, and hold it to its digests."""
        for write in writes:
            for part in write.image.parts:
                self._check(write.partition, part)

    def _check(self, partition: Partition, part: Part) -> None:
        if part.digest is None:
            raise DigestError(f"nothing says what must be in the partition {partition.number}")
        start, size = partition.start + part.offset, source_size(part.source)
        self.drop_cached(start, size)
        hasher = Hasher(part.digest.algorithm)
        for at in range(0, size, _CHUNK):
            hasher.update(self.read(start + at, min(_CHUNK, size - at)))
        if hasher.digest() != part.digest:
            raise DigestError(
                f"partition {partition.number} does not read back as it was written", hint="the medium is damaged"
            )

    def _name(self, identities: Mapping[int, Identity]) -> None:
        for offset, data in plan_identities(self.read, self.size, identities):
            self.write(offset, data)
            self.sync()


@contextmanager
def open_slot_disk(path: Path, *, writing: bool) -> Iterator[SlotDisk]:
    """Open a disk or disk image; a writer locks out all other commands."""
    with plain_errors(TargetError, f"{'change' if writing else 'read'} {path}"):
        fd = os.open(path, (os.O_RDWR if writing else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            if writing:
                _lock(fd, path)
            yield SlotDisk(fd, os.lseek(fd, 0, os.SEEK_END))
        finally:
            os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TargetError(f"another command is changing {path}", hint="wait until it has ended") from error
