"""A whole block device, with whatever lies on it: old data, old tables, old file systems.

One descriptor, opened exclusively, does all the writing; other programs work on files beside. First every place goes
where an old table or file system would be found, then come the contents, and the partition table is the last thing
written: a device that was interrupted has nothing to boot.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from oci2boot.errors import TargetError
from oci2boot.formats.fat import BootSector
from oci2boot.system.block import discard, read_partitions_again, zero_out
from oci2boot.system.files import half_written, plain_errors
from oci2boot.target.copy import Progress, copy_images
from oci2boot.target.esp import write_esp
from oci2boot.target.filesystem import quiet, write_ext4_staged
from oci2boot.target.luks import Secret, write_encrypted
from oci2boot.target.plan import MARGIN, DiskPlan
from oci2boot.target.table import write_table
from oci2boot.target.volume import Volume


def write_device(plan: DiskPlan, device: Path, *, secret: Secret | None = None, progress: Progress = quiet) -> bool:
    """Write the disk and sync it; return whether the kernel knows the new partitions.

    `device` has the plan's size; a regular file will do. `progress` is told what `write_disk` tells it. Raises
    `TargetError`; `DigestError` where an object's content is not what its name says.
    """
    with plain_errors(TargetError, f"write to {device}"), _exclusive(device, plan.size) as fd, half_written(device):
        with TemporaryDirectory(prefix="oci2boot-") as name:
            folder = Path(name)
            discard(fd, plan.size)
            for start, end in _places_of_signatures(plan):
                zero_out(fd, start, end - start)
            os.fsync(fd)
            _write_esp(plan, fd, folder)
            progress(plan.esp_content)
            copy_images(plan.images, fd, progress, blank=False)
            if plan.ext4 and plan.ext4.header:
                write_encrypted(plan, fd, secret, folder, progress, blank=False)
            elif plan.ext4:
                write_ext4_staged(plan, Volume(fd, plan.ext4.start, blank=False), folder, progress)
        os.fsync(fd)
        write_table(plan, fd)
        os.fsync(fd)
        return read_partitions_again(fd, device)


@contextmanager
def _exclusive(device: Path, size: int) -> Iterator[int]:
    """Open a device that nothing else in the system has claimed; open(2), O_EXCL without O_CREAT."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except BlockingIOError as error:
        raise TargetError(f"{device} is in use", hint="unmount it, and stop what uses it") from error
    try:
        found = os.lseek(fd, 0, os.SEEK_END)
        if found != size:
            raise TargetError(f"{device} has {found} bytes, the plan is for {size}", hint="plan again")
        yield fd
    finally:
        os.close(fd)


def _places_of_signatures(plan: DiskPlan) -> Iterator[tuple[int, int]]:
    """Yield the ranges in which tables, file systems, RAID and LVM leave what they are found by: start and end of
    the disk and of each partition.
    """
    yield 0, plan.esp.start + MARGIN
    for part in plan.partitions[1:]:
        yield part.start - MARGIN, part.start + MARGIN
    end = part.start + part.size
    yield end - MARGIN, end
    yield max(end, plan.size - 2 * MARGIN), plan.size


def _write_esp(plan: DiskPlan, fd: int, folder: Path) -> None:
    """Make the file system in a file, and carry over its tables and the clusters in use; they are the first ones."""
    image, start = folder / "esp", plan.esp.start
    staged = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(staged, plan.size)  # mkfs.vfat takes the disk's geometry from its size
        write_esp(plan, image, start)
        tables = BootSector.unpack(os.pread(staged, plan.sector, start)).data_offset
        Volume(fd, 0, blank=False).copy(staged, start, min(tables + plan.esp.used, plan.esp.size))
    finally:
        os.close(staged)
        image.unlink()
