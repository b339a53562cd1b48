"""A disk image or block device that is only read: its partitions and what is on them, nothing mounted."""

import json
import os
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from oci2boot.errors import EncryptedError, FormatError, TargetError
from oci2boot.formats.erofs.structs import EROFS_MAGIC, SUPERBLOCK_OFFSET
from oci2boot.formats.ext4_reader import Ext4
from oci2boot.formats.fat import Fat
from oci2boot.formats.gpt import Gpt, Partition, read_gpt
from oci2boot.system.files import plain_errors
from oci2boot.system.run import run
from oci2boot.target import luks
from oci2boot.target.types import ESP_TYPE, LINUX_TYPE, ROOT_TYPES, STATE_LABEL


@dataclass(frozen=True, slots=True)
class OpenedDisk:
    """May be read from several threads."""

    fd: int
    size: int
    gpt: Gpt
    passphrase: bytes | None = field(default=None, repr=False)
    """Opens the root partition, where it is encrypted."""

    def esp(self) -> Fat:
        return Fat(self.reader(self._only("EFI system partition", {ESP_TYPE})))

    def root(self) -> Ext4:
        read = self.reader(self._only("root partition", ROOT_TYPES))
        if read(0, len(luks.MAGIC)) == luks.MAGIC:
            if self.passphrase is None:
                raise EncryptedError("the root partition is encrypted", hint="its passphrase opens it")
            with TemporaryDirectory(prefix="oci2boot-") as folder:
                read = luks.unlock(read, self.passphrase, Path(folder))
        return Ext4(read)

    def of_types(self, types: Collection[str]) -> list[Partition]:
        return [part for part in self.gpt.partitions if part.type in types]

    def pieces(self, part: Partition, size: int) -> Iterator[bytes]:
        """Yield what a partition begins with."""
        read = self.reader(part)
        yield from (read(at, min(_PIECE, size - at)) for at in range(0, size, _PIECE))

    @property
    def has_erofs(self) -> bool:
        """Is a root partition the root file system itself, rather than a composefs machine's physical root?"""
        return any(
            self.reader(part)(SUPERBLOCK_OFFSET, 4) == EROFS_MAGIC.to_bytes(4, "little")
            for part in self.of_types(ROOT_TYPES)
        )

    def state(self) -> Ext4 | None:
        """Return what a machine with such a root writes to, if there is anything."""
        parts = [part for part in self.of_types({LINUX_TYPE}) if part.name == STATE_LABEL]
        if len(parts) > 1:
            raise FormatError(f"the disk has {len(parts)} partitions {STATE_LABEL}")
        return Ext4(self.reader(parts[0])) if parts else None

    def _only(self, what: str, types: Collection[str]) -> Partition:
        parts = self.of_types(types)
        if len(parts) != 1:
            raise FormatError(f"the disk has {len(parts) or 'no'} {what}{'s' if parts else ''}")
        return parts[0]

    def reader(self, part: Partition) -> Callable[[int, int], bytes]:
        """Return what reads (offset within the partition, size)."""

        def read(offset: int, size: int) -> bytes:
            return os.pread(self.fd, max(min(size, part.size - offset), 0), part.start + offset)

        return read


@contextmanager
def open_disk(path: Path, *, secret: luks.Secret | None = None) -> Iterator[OpenedDisk]:
    """Open a disk; `FormatError` where it has no partition table that can be read."""
    with plain_errors(TargetError, f"read {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            _check_raw(fd, path)
            gpt = read_gpt(lambda offset, count: os.pread(fd, count, offset), size)
            yield OpenedDisk(fd, size, gpt, secret.passphrase if secret else None)
        finally:
            os.close(fd)


_PIECE = 1 << 20
_FOREIGN = ((b"QFI\xfb", 0, "qcow2"), (b"KDMV", 0, "vmdk"), (b"conectix", 0, "vpc"), (b"\x7f\x10\xda\xbe", 64, "vdi"))
"""What a disk image in another format begins with: bytes, their offset, qemu-img's name of the format."""


def _check_raw(fd: int, path: Path) -> None:
    driver = _foreign(fd)
    if driver:
        raise FormatError(
            f"{path} is a disk image in the format {driver}, only raw ones are read",
            hint=f"qemu-img convert -f {driver} -O raw {path} disk.raw",
        )


def _foreign(fd: int) -> str | None:
    return next((driver for magic, offset, driver in _FOREIGN if os.pread(fd, len(magic), offset) == magic), None)


@contextmanager
def as_raw(path: Path) -> Iterator[Path]:
    """Give a disk as a raw one: itself, or what qemu-img makes of its format for as long as the block lasts."""
    with plain_errors(TargetError, f"read {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            driver, header = _foreign(fd), os.pread(fd, _QCOW2_HEADER.size, 0)
        finally:
            os.close(fd)
    if driver is None:
        yield path
        return
    if driver == "qcow2":
        _check_qcow2(header, path)
    if driver == "vmdk":
        _check_vmdk(header, path)
    with TemporaryDirectory(prefix="oci2boot-") as folder:
        raw = Path(folder, "disk.raw")
        run(["qemu-img", "convert", "-O", "raw", "-S", "64k", _source(path, driver), raw], package="qemu-utils")
        yield raw


_QCOW2_HEADER = struct.Struct(">4sIQ56xQ")
_EXTERNAL_DATA = 1 << 2


def _check_qcow2(header: bytes, path: Path) -> None:
    """Refuse an image whose content is in other files, which it names. QEMU, docs/interop/qcow2.txt"""
    if len(header) < _QCOW2_HEADER.size:
        raise FormatError(f"{path} is cut off")
    _, version, backing, features = _QCOW2_HEADER.unpack(header)
    if backing or (version > 2 and features & _EXTERNAL_DATA):
        raise FormatError(f"{path} is not whole: its content is in other files", hint="merge them by qemu-img convert")


_VMDK_HEADER = struct.Struct("<4s8xQ")


def _check_vmdk(header: bytes, path: Path) -> None:
    """Refuse an image without a capacity of its own: QEMU then reads the files that it names. QEMU, block/vmdk.c"""
    if len(header) < _VMDK_HEADER.size:
        raise FormatError(f"{path} is cut off")
    _, capacity = _VMDK_HEADER.unpack_from(header)
    if capacity == 0:
        raise FormatError(f"{path} is not whole: it names other files", hint="make one file of it by qemu-img convert")


def _source(path: Path, driver: str) -> str:
    """Name a file to QEMU so that it opens this one alone, whatever is written in it or in its name."""
    file = {"driver": "file", "filename": str(path.absolute())}
    return "json:" + json.dumps({"driver": driver, "file": file, "backing": None})
