"""A live ISO: a disk whose first MiB is an ISO 9660 volume too, so that firmware starts it from an optical drive.

El Torito's boot image is the EFI system partition itself; the rest is found by the one partition table. It counts
sectors of 512 bytes also where those of the drive have 2048: there, the kernel reads it through a loop device.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from oci2boot.errors import TargetError, ToolError
from oci2boot.formats.iso9660 import SYSTEM_AREA, VOLUME_ID_MAX, read_volume
from oci2boot.system.files import plain_errors
from oci2boot.system.run import Argv, run
from oci2boot.target.copy import Progress, copy_images
from oci2boot.target.disk import check_target, publish
from oci2boot.target.entries import EspFile
from oci2boot.target.esp import write_esp
from oci2boot.target.filesystem import quiet
from oci2boot.target.images import Image
from oci2boot.target.plan import DiskOptions, DiskPlan, plan_disk
from oci2boot.target.space import fat_minimum, fat_needed
from oci2boot.target.table import write_table

SECTOR: Final = 512
_CLUSTER: Final = 512
"""The smallest: FAT32 has 65525 clusters at least, which are 33 MiB then and not 257."""
_HEADS, _SECTORS_PER_TRACK = 64, 32
"""A cylinder of them is one MiB."""
_CREATOR: Final = "OCI2BOOT"


def plan_iso(esp: Sequence[EspFile], images: Sequence[Image], options: DiskOptions) -> DiskPlan:
    """Plan a disk where nothing can be written, as small as its content."""
    if not images:
        raise TargetError("a live ISO has a root file system of its own", hint="convert it in the mode verity")
    if options.size is not None:
        raise TargetError("a live ISO is as large as its content: a size is for disks that are written to")
    if options.sector != SECTOR:
        raise TargetError(f"a live ISO has sectors of {SECTOR} bytes", hint="leave out the size of sectors")
    needed = fat_minimum(fat_needed(esp, _CLUSTER), SECTOR, _CLUSTER)
    return plan_disk(
        None, esp, replace(options, esp_cluster=_CLUSTER, esp_size=options.esp_size or needed, encrypted=False), images
    )


def volume_id(name: str) -> str:
    """Return a name as ISO 9660 can hold it. ECMA-119, 7.4.1: d-characters."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")[:VOLUME_ID_MAX] or _CREATOR


def iso_argv(volume: str, epoch: int, esp: Path, target: Path) -> Argv:
    """Return the command for an empty volume that fills the first MiB, the EFI system partition right behind it."""
    time = datetime.fromtimestamp(epoch, UTC)
    return [
        "xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-o", target,
        "-V", volume, "-p", _CREATOR, "-no-pad",
        f"--modification-date={time:%Y%m%d%H%M%S}00",
        "--protective-msdos-label", "-partition_cyl_align", "all",
        "-partition_hd_cyl", str(_HEADS), "-partition_sec_hd", str(_SECTORS_PER_TRACK),
        "-append_partition", "2", "0xef", esp, "-appended_part_as_gpt",
        "-c", "boot.cat", "--boot-catalog-hide",
        "-e", "--interval:appended_partition_2:all::", "-no-emul-boot",
        "-path-list", os.devnull,
    ]  # fmt: skip


def write_iso(
    plan: DiskPlan, target: Path, volume: str, *, overwrite: bool = False, progress: Progress = quiet
) -> None:
    """Write the ISO under a temporary name, sync it, and rename it; the same plan gives the same bytes.

    Raises `TargetError`; `DigestError` where an object's content is not what its name says.
    """
    with plain_errors(TargetError, f"write the live ISO {target}"):
        check_target(plan, target, overwrite=overwrite)
        with TemporaryDirectory(prefix=f".{target.name[:200]}.", dir=target.parent) as name:
            folder = Path(name)
            iso, esp = folder / "iso", folder / "esp"
            with esp.open("wb") as file:
                file.truncate(plan.esp.size)
            write_esp(plan, esp, 0)
            run(
                iso_argv(volume, plan.epoch, esp, iso),
                env={"SOURCE_DATE_EPOCH": str(plan.epoch), "TZ": "UTC"},
                package="xorriso",
            )
            esp.unlink()
            progress(plan.esp_content)
            with iso.open("r+b") as file:
                _complete(plan, file.fileno(), progress)
                publish(iso, target, file.fileno(), overwrite=overwrite)


def _complete(plan: DiskPlan, fd: int, progress: Progress) -> None:
    """Replace xorriso's partition table, whose GUIDs nobody can choose, and add the other partitions."""
    volume = read_volume(lambda offset, size: os.pread(fd, size, offset))
    if volume is None or volume.boot_image != plan.esp.start:
        raise ToolError("xorriso put the EFI system partition elsewhere than at 1 MiB", hint="take version 1.5.4")
    os.ftruncate(fd, plan.esp.start + plan.esp.size)  # behind it lies the copy of that table
    os.ftruncate(fd, plan.size)
    os.pwrite(fd, bytes(SYSTEM_AREA), 0)
    write_table(plan, fd)
    copy_images(plan.images, fd, progress, blank=True)
