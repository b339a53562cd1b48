"""A disk image or block device that is only read: its partitions and what is on them, nothing mounted."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oci2boot.errors import FormatError, TargetError
from oci2boot.formats.ext4_reader import Ext4
from oci2boot.formats.fat import Fat
from oci2boot.formats.gpt import Gpt, Partition, read_gpt
from oci2boot.system.files import plain_errors
from oci2boot.target.types import ESP_TYPE, ROOT_TYPES


@dataclass(frozen=True, slots=True)
class OpenedDisk:
    """May be read from several threads."""

    fd: int
    size: int
    gpt: Gpt

    def esp(self) -> Fat:
        return Fat(self._reader(self._only("EFI system partition", {ESP_TYPE})))

    def root(self) -> Ext4:
        read = self._reader(self._only("root partition", ROOT_TYPES))
        if read(0, len(_LUKS)) == _LUKS:
            raise FormatError("the root partition is encrypted", hint="verify the machine from within: its /sysroot")
        return Ext4(read)

    def _only(self, what: str, types: Collection[str]) -> Partition:
        found = [part for part in self.gpt.partitions if part.type in types]
        if len(found) != 1:
            raise FormatError(f"the disk has {len(found) or 'no'} {what}{'s' if found else ''}")
        return found[0]

    def _reader(self, part: Partition) -> Callable[[int, int], bytes]:
        def read(offset: int, size: int) -> bytes:
            return os.pread(self.fd, max(min(size, part.size - offset), 0), part.start + offset)

        return read


@contextmanager
def open_disk(path: Path) -> Iterator[OpenedDisk]:
    """Open a disk; `FormatError` where it has no partition table that can be read."""
    with plain_errors(TargetError, f"read {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            _check_raw(fd, path)
            yield OpenedDisk(fd, size, read_gpt(lambda offset, count: os.pread(fd, count, offset), size))
        finally:
            os.close(fd)


_LUKS = b"LUKS\xba\xbe"
_FOREIGN = ((b"QFI\xfb", 0, "qcow2"), (b"KDMV", 0, "vmdk"), (b"conectix", 0, "vpc"), (b"\x7f\x10\xda\xbe", 64, "vdi"))
"""What a disk image in another format begins with: bytes, their offset, qemu-img's name of the format."""


def _check_raw(fd: int, path: Path) -> None:
    for magic, offset, driver in _FOREIGN:
        if os.pread(fd, len(magic), offset) == magic:
            raise FormatError(
                f"{path} is a disk image in the format {driver}, only raw ones are read",
                hint=f"qemu-img convert -f {driver} -O raw {path} disk.raw",
            )
