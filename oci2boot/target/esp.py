"""The EFI system partition, made by mkfs.vfat and mtools inside the disk image."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from oci2boot.errors import ToolError
from oci2boot.system.run import Argv, run
from oci2boot.target.entries import EspFile
from oci2boot.target.plan import DiskPlan

_FAT_EPOCH: Final = 315532800
"""1980-01-01, the first day that FAT can name."""


def mkfs_argv(plan: DiskPlan, image: Path, start: int) -> Argv:
    esp, sector = plan.esp, plan.sector
    return [
        "mkfs.vfat", "-F", "32", "--invariant",
        "-S", str(sector), "-s", str(plan.esp_cluster // sector),
        "-i", str(esp.filesystem_id), "-n", esp.label,
        "-h", str(esp.start // sector), "--offset", str(start // sector),
        image, str(esp.size // 1024),
    ]  # fmt: skip


def directories(files: Sequence[EspFile]) -> list[str]:
    """Return the directories that the files need, each after the one that it lies in."""
    folders = {
        "/".join(parts[:depth]) for file in files for parts in [file.path.split("/")] for depth in range(1, len(parts))
    }
    return sorted(folders)


def write_esp(plan: DiskPlan, image: Path, start: int) -> None:
    """Make the file system `start` bytes into a file and copy its files; the same plan gives the same bytes."""
    run(mkfs_argv(plan, image, start), package="dosfstools")
    drive, env = f"{image}@@{start}", mtools_environment(plan.epoch)
    if folders := directories(plan.esp_files):
        run(["mmd", "-i", drive, *(f"::/{folder}" for folder in folders)], env=env, package="mtools")
    for file in plan.esp_files:
        if isinstance(file.source, bytes):
            run(["mcopy", "-i", drive, "-", f"::/{file.path}"], data=file.source, env=env, package="mtools")
        else:
            run(["mcopy", "-i", drive, file.source.path, f"::/{file.path}"], env=env, package="mtools")


def replace_on_esp(image: Path, start: int, files: Mapping[str, bytes], epoch: int) -> None:
    """Write small files into the file system that begins at byte `start` of a disk image, over those there are."""
    drive, env = f"{image}@@{start}", mtools_environment(epoch)
    for folder in directories([EspFile(path, data) for path, data in files.items()]):
        # It fails on a directory that is there; if for another reason, mcopy will say so.
        with suppress(ToolError):
            run(["mmd", "-D", "s", "-i", drive, f"::/{folder}"], env=env, package="mtools")
    for path, data in files.items():
        run(["mcopy", "-D", "o", "-i", drive, "-", f"::/{path}"], data=data, env=env, package="mtools")


def mtools_environment(epoch: int) -> dict[str, str]:
    return {
        "SOURCE_DATE_EPOCH": str(max(epoch, _FAT_EPOCH)),
        "TZ": "UTC",
        "MTOOLS_SKIP_CHECK": "1",
        "MTOOLSRC": os.devnull,
    }
