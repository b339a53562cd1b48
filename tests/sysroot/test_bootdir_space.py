"""The space that a plan asks for, on a real FAT file system."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.sysroot.bootdir import TEMPORARY, read_boot_directory
from oci2boot.sysroot.bootdir_plan import plan_boot
from oci2boot.sysroot.bootdir_steps import Source, Write
from tests.sysroot.boots import addon, put, uki
from tests.witness import program

CLUSTER = 512


class Fat:
    """A file system in an image, by dosfstools and mtools."""

    def __init__(self, image: Path) -> None:
        self.image = image
        argv: list[str | Path] = [program("mkfs.vfat"), "-F", "16", "-s", "1", "-S", str(CLUSTER), "-C", image, "4096"]
        subprocess.run(argv, check=True, capture_output=True)

    def run(self, *argv: str, data: bytes | None = None) -> None:
        command = [program(argv[0]), "-i", str(self.image), *argv[1:]]
        subprocess.run(command, check=True, capture_output=True, input=data)

    def put(self, path: str, data: bytes) -> None:
        names = path.split("/")
        for depth in range(1, len(names)):
            folder = "::/" + "/".join(names[:depth])
            if subprocess.run([program("mdir"), "-i", self.image, folder], capture_output=True, check=False).returncode:
                self.run("mmd", folder)
        self.run("mcopy", "-", f"::/{path}", data=data)

    @property
    def free(self) -> int:
        """Bytes, by what fsck.vfat counts."""
        said = subprocess.run([program("fsck.vfat"), "-n", self.image], check=True, capture_output=True, text=True)
        used, total = map(int, re.findall(r"(\d+)/(\d+) clusters", said.stdout)[0])
        return (total - used) * CLUSTER


OLD: Mapping[str, bytes] = {"EFI/Linux/debian_1.efi": uki("1"), "EFI/BOOT/x.efi": b"x" * 700}
NEW: Mapping[str, Source] = {
    "EFI/Linux/debian_2.efi": uki("2"),
    "EFI/Linux/debian_2.efi.extra.d/a-quite-long-name-for-an-addon.addon.efi": addon("quiet"),
    **{f"EFI/oci2boot/{'k' * 32}/{number:03}": b"data" * number for number in range(40)},
}


def test_the_steps_fit_into_what_is_needed_and_hardly_into_less(tmp_path: Path) -> None:
    """B.8"""
    fat, esp = Fat(tmp_path / "fat"), tmp_path / "esp"
    for path, data in OLD.items():
        fat.put(path, data)
        put(esp, path, data)
    before = fat.free
    here = replace(read_boot_directory(esp), free=before, size=0, cluster=CLUSTER)
    plan = plan_boot(here, NEW, first="EFI/Linux/debian_2.efi", tries=3)
    lowest = before
    for step in plan.steps:
        assert isinstance(step, Write)
        assert isinstance(step.source, bytes)
        folder = step.path.rpartition("/")[0]
        # As `apply_boot` does: complete under another name first.
        fat.put(f"{folder}/{TEMPORARY}0123456789abcdef.tmp", step.source)
        lowest = min(lowest, fat.free)
        fat.run("mren", f"::/{folder}/{TEMPORARY}0123456789abcdef.tmp", f"::/{step.path}")
        lowest = min(lowest, fat.free)
    taken = before - lowest
    assert taken <= plan.needed
    # Too much by no more than the directories' growth, which is counted high.
    assert plan.needed - taken < 24 * CLUSTER
    with pytest.raises(TargetError, match=f"{plan.needed} are needed"):
        plan_boot(replace(here, free=plan.needed - 1), NEW, first="EFI/Linux/debian_2.efi", tries=3)
    assert plan_boot(replace(here, free=plan.needed), NEW, first="EFI/Linux/debian_2.efi", tries=3) == plan
