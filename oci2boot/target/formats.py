"""Disk images in the formats of other hypervisors, by qemu-img(1), and live ISOs."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, get_args

from oci2boot.errors import TargetError
from oci2boot.system.files import plain_errors
from oci2boot.system.run import Argv, run
from oci2boot.target.copy import Progress
from oci2boot.target.disk import check_target, publish, write_disk
from oci2boot.target.filesystem import quiet
from oci2boot.target.iso import volume_id, write_iso
from oci2boot.target.luks import Secret
from oci2boot.target.plan import DiskPlan

DiskFormat = Literal["raw", "qcow2", "vmdk", "vhd", "vdi", "iso"]
FORMATS: Final[tuple[DiskFormat, ...]] = get_args(DiskFormat)

_OPTIONS: Final = {
    "qcow2": ("qcow2", "compat=1.1,lazy_refcounts=off"),
    "vmdk": ("vmdk", "subformat=monolithicSparse"),
    # Without force_size, the size is rounded to the geometry of a disk of 1990, and the backup table is cut off.
    "vhd": ("vpc", "subformat=dynamic,force_size=on"),
    "vdi": ("vdi", "static=off"),
}


def format_of(target: Path) -> DiskFormat:
    """Return the format that a file name asks for; raw where it names none."""
    suffix = target.suffix.lower().lstrip(".")
    return next((known for known in FORMATS if known == suffix), "vhd" if suffix == "vpc" else "raw")


def convert_argv(raw: Path, target: Path, disk_format: DiskFormat) -> Argv:
    driver, options = _OPTIONS[disk_format]
    return ["qemu-img", "convert", "-f", "raw", "-O", driver, "-o", options, "-S", "64k", raw, target]


def write_disk_as(
    plan: DiskPlan,
    target: Path,
    disk_format: DiskFormat,
    *,
    name: str = "",
    overwrite: bool = False,
    secret: Secret | None = None,
    progress: Progress = quiet,
) -> None:
    """Write a disk image in a format, at once as `write_disk` does; for a moment there are two of it.

    An ISO is called by a `name`.
    """
    if disk_format == "iso":
        write_iso(plan, target, volume_id(name), overwrite=overwrite, progress=progress)
        return
    if disk_format == "raw":
        write_disk(plan, target, overwrite=overwrite, secret=secret, progress=progress)
        return
    if plan.sector != 512:
        raise TargetError(f"a disk image in the format {disk_format} has sectors of 512 bytes", hint="take raw")
    with plain_errors(TargetError, f"write the disk image {target}"):
        check_target(plan, target, overwrite=overwrite)
        with TemporaryDirectory(prefix=f".{target.name[:200]}.", dir=target.parent) as folder:
            raw, converted = Path(folder, "raw"), Path(folder, "converted")
            write_disk(plan, raw, secret=secret, progress=progress)
            run(convert_argv(raw, converted, disk_format), package="qemu-utils")
            with converted.open("rb") as file:
                publish(converted, target, file.fileno(), overwrite=overwrite)
