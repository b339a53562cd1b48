"""A disk image file, written by an ordinary user: no loop device, no mount, no fs-verity in the running kernel."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from oci2boot.errors import OccupiedError, TargetError
from oci2boot.system.files import plain_errors, sync_directory, temporary_name
from oci2boot.target.copy import Progress, copy_images
from oci2boot.target.esp import write_esp
from oci2boot.target.filesystem import quiet, write_ext4
from oci2boot.target.luks import Secret, write_encrypted
from oci2boot.target.plan import DiskPlan
from oci2boot.target.table import write_table

_OVERHEAD: Final = 16 << 20
"""What bitmaps, tables and directories take in the file, generously."""


def write_disk(
    plan: DiskPlan,
    target: Path,
    *,
    overwrite: bool = False,
    secret: Secret | None = None,
    progress: Progress = quiet,
) -> None:
    """Write the disk under a temporary name beside `target`, sync it, and rename it; an error leaves nothing behind.

    `secret` opens the ext4 file system of a plan that has it encrypted.

    `progress` is told the bytes of content copied since its last call, from more than one thread; they sum up to
    `plan.content_size`. Raises `TargetError`; `DigestError` where an object's content is not what its name says.
    """
    with plain_errors(TargetError, f"write the disk image {target}"):
        check_target(plan, target, overwrite=overwrite)
        temporary = temporary_name(target)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _write(plan, fd, temporary, secret, progress)
            publish(temporary, target, fd, overwrite=overwrite)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(fd)


def check_target(plan: DiskPlan, target: Path, *, overwrite: bool) -> None:
    """Refuse what is there already and may not be replaced, and a place without enough room."""
    if not overwrite and os.path.lexists(target):
        raise OccupiedError(f"{target} exists already")
    if target.exists() and not target.is_file():
        raise TargetError(f"{target} is not a regular file")
    needed = sum(part.used for part in plan.partitions) + _OVERHEAD
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise TargetError(
            f"cannot write the disk image {target}: {needed} bytes are needed, {free} are free",
            hint="free some space, or choose another place",
        )


def publish(temporary: Path, target: Path, fd: int, *, overwrite: bool) -> None:
    """Sync the file and give it its name."""
    os.fsync(fd)
    if overwrite:
        temporary.replace(target)
    else:
        _link(temporary, target)
    sync_directory(target.parent)


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike rename, it never replaces what appeared in the meantime
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise TargetError(f"{target} exists already") from error
        temporary.replace(target)  # a file system without hard links
    else:
        temporary.unlink()


def _write(plan: DiskPlan, fd: int, image: Path, secret: Secret | None, progress: Progress) -> None:
    os.ftruncate(fd, plan.size)
    write_table(plan, fd)
    write_esp(plan, image, plan.esp.start)
    progress(plan.esp_content)
    copy_images(plan.images, fd, progress, blank=True)
    if plan.ext4 and plan.ext4.header:
        with TemporaryDirectory(prefix=image.name, dir=image.parent) as folder:
            write_encrypted(plan, fd, secret, Path(folder), progress, blank=True)
    elif plan.ext4:
        write_ext4(plan, fd, image, progress)
