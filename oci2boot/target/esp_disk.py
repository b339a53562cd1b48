"""The EFI system partition of a disk that is there already, changed without a mount.

mtools change a copy; what they changed goes to the disk in the order in which nothing refers to what is not there:
content, file allocation tables, directories when something is added; the other way round when something goes.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from oci2boot.formats.fat import Fat
from oci2boot.formats.gpt import Partition
from oci2boot.system.run import run
from oci2boot.target.esp import mtools_environment
from oci2boot.target.slot_disk import SlotDisk

_CHUNK: Final = 1 << 20
_SHORT: Final = re.compile(
    r"(?P<base>[a-z0-9_-]{1,8}|[A-Z0-9_-]{1,8})(\.(?P<extension>[a-z0-9_-]{1,3}|[A-Z0-9_-]{1,3}))?"
)
_SLOT: Final = 32
_LONG_NAME: Final = 0x0F
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10


@dataclass(frozen=True, slots=True)
class EspOnDisk:
    disk: SlotDisk
    partition: Partition
    copy: Path
    epoch: int
    """Seconds since 1970: the time of what is written."""

    def fat(self) -> Fat:
        """Return what is on the disk now."""
        return Fat(self.disk.reader(self.partition))

    def make_directory(self, path: str) -> None:
        self._mtools("mmd", f"::/{path}")
        self._carry_over(adding=True)

    def add(self, path: str, source: bytes | Path) -> None:
        """Write a file under a name that is not there yet."""
        if isinstance(source, bytes):
            self._mtools("mcopy", "-", f"::/{path}", data=source)
        else:
            self._mtools("mcopy", source, f"::/{path}")
        self._carry_over(adding=True)
        self.disk.drop_cached(self.partition.start, self.partition.size)

    def rename(self, path: str, to: str) -> None:
        """Give a file another name in its directory, at once, in the place of what had it."""
        replacing = to in self.fat().files
        if replacing:
            self._mtools("mdel", f"::/{to}")
        self._mtools("mren", f"::/{path}", f"::/{to}")
        self._restore_case(to.rpartition("/")[2])
        self._carry_over(adding=not replacing)

    def remove(self, path: str) -> None:
        self._mtools("mdel", f"::/{path}")
        self._carry_over(adding=False)

    def remove_directory(self, path: str) -> None:
        self._mtools("mrd", f"::/{path}")
        self._carry_over(adding=False)

    def _restore_case(self, name: str) -> None:
        """Mark a short name in lower case as such: mren forgets to, and DEMO_1.EFI would come of it."""
        found = _SHORT.fullmatch(name)
        if not found:
            return
        base, extension = found["base"], found["extension"] or ""
        case = (_LOWER_BASE if base != base.upper() else 0) | (
            _LOWER_EXTENSION if extension != extension.upper() else 0
        )
        short = f"{base:8}{extension:3}".upper().encode()
        with self.copy.open("r+b") as file:
            for offset, data in list(self._changes(self.fat())):
                for at in range(0, len(data), _SLOT):
                    if data[at : at + 11] == short and data[at + 11] != _LONG_NAME:
                        os.pwrite(file.fileno(), bytes([case]), offset + at + 12)

    def _mtools(self, name: str, *words: str | Path, data: bytes | None = None) -> None:
        run([name, "-i", self.copy, *words], data=data, env=mtools_environment(self.epoch), package="mtools")

    def _carry_over(self, *, adding: bool) -> None:
        before = self.fat()
        content, tables, directories = [], [], []
        for offset, data in self._changes(before):
            if offset < before.root_offset:
                tables.append((offset, data))
            elif before.in_use(offset):
                directories.append((offset, data))
            else:
                content.append((offset, data))
        for group in (content, tables, directories) if adding else (content, directories, tables):
            for offset, data in group:
                self.disk.write(self.partition.start + offset, data)
            if group:
                self.disk.sync()

    def _changes(self, fat: Fat) -> Iterator[tuple[int, bytes]]:
        """Yield offset within the partition and bytes of the clusters, and of the blocks before them, that differ."""
        read = self.disk.reader(self.partition)
        with self.copy.open("rb") as file:
            for start, end in _data(file.fileno(), self.partition.size):
                # Whole clusters: half a directory entry is none.
                at = start - (start - fat.data_offset) % fat.cluster if start > fat.data_offset else start
                while at < end:
                    step = fat.cluster if at >= fat.data_offset else min(fat.cluster, fat.data_offset - at)
                    size = max(step, _CHUNK // step * step) if at >= fat.data_offset else step
                    new, old = os.pread(file.fileno(), size, at), read(at, size)
                    if new != old:
                        for inner in range(0, len(new), step):
                            piece = new[inner : inner + step]
                            if piece != old[inner : inner + step]:
                                yield at + inner, piece
                    at += size


@contextmanager
def open_esp(disk: SlotDisk, partition: Partition, epoch: int) -> Iterator[EspOnDisk]:
    """Give the EFI system partition; a copy of it is made, as sparse as it is."""
    with TemporaryDirectory(prefix="oci2boot-") as folder:
        copy = Path(folder, "esp")
        read = disk.reader(partition)
        with copy.open("wb") as file:
            for at in range(0, partition.size, _CHUNK):
                data = read(at, _CHUNK)
                if data.count(0) != len(data):
                    file.seek(at)
                    file.write(data)
            file.truncate(partition.size)
        yield EspOnDisk(disk, partition, copy, epoch)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are no holes. lseek(2), SEEK_DATA."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
