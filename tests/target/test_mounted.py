"""Whether the next kernel finds a file system that is mounted now. Witnesses: stat, and the specifications' words."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.target.mounted import Mounted, check_found, read_mounted
from tests.witness import program

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
"""What Debian's installer gives to its root partition."""
ROOT_X86_64 = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
"""UAPI.2, Discoverable Partitions Specification."""
DEBIAN = Mounted(
    point=Path("/"),
    source="/dev/sda2",
    type="ext4",
    top="/",
    names={"UUID": "3f1b-aa", "PARTUUID": "77-2"},
    part_type=LINUX,
    disk="sda",
    number=2,
)
ESP = Mounted(
    point=Path("/boot/efi"),
    source="/dev/sda1",
    type="vfat",
    top="/",
    names={"UUID": "AB12-CD34"},
    part_type="c12a7328",
    disk="sda",
    number=1,
)


def check(words: str, root: Mounted = DEBIAN, esp: Mounted = ESP) -> None:
    check_found(words.split(), root, esp, "amd64", "oci2boot")


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("rw root=UUID=3f1b-aa", {}),
        ('rw root=LABEL=oci2boot "root=UUID=3F1B-AA"', {}),
        ("root=PARTUUID=77-2 rw", {}),
        ("root=/dev/disk/by-uuid/3f1b-aa", {}),
        ("root=/dev/sda2", {}),
        ("root=LABEL=oci2boot", {"names": {"LABEL": "oci2boot"}}),
        ("rw", {"names": {"LABEL": "oci2boot"}}),
        ("rw", {"part_type": ROOT_X86_64}),
        ("root=gpt-auto", {"part_type": ROOT_X86_64}),
        ("root=UUID=3f1b-aa rootflags=compress=zstd,subvol=@rootfs", {"type": "btrfs", "top": "/@rootfs"}),
    ],
)
def test_what_the_kernel_finds_is_taken(words: str, changed: dict[str, object]) -> None:
    """O.1"""
    check(words, replace(DEBIAN, **changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "changed", "says", "hint"),
    [
        (
            "rw",
            {},
            f"of the type {LINUX}",
            f"the kernel argument root=UUID=3f1b-aa, or sfdisk --part-type /dev/sda 2 {ROOT_X86_64}",
        ),
        ("rw", {"part_type": ROOT_X86_64, "disk": "sdb"}, "not on the disk", "root=UUID=3f1b-aa"),
        ("rw", {"part_type": None, "disk": None, "number": None}, "no partition", "root=UUID=3f1b-aa"),
        ("root=LABEL=oci2boot", {}, "has no LABEL", "or e2label /dev/sda2 oci2boot"),
        ("root=LABEL=a root=LABEL=b", {"names": {"LABEL": "a"}}, "look for LABEL=b", None),
        ("root=UUID=1234", {}, "has UUID=3f1b-aa", "root=UUID=3f1b-aa"),
        ("root=/dev/vda2", {}, "is on /dev/sda2", "root=UUID=3f1b-aa"),
        ("root=UUID=3f1b-aa", {"top": "/@rootfs"}, "default subvolume", "rootflags=subvol=/@rootfs"),
    ],
)
def test_what_it_would_not_find_is_refused(words: str, changed: dict[str, object], says: str, hint: str | None) -> None:
    """O.1: before anything is written, with what to do."""
    with pytest.raises(TargetError, match=re.escape(says)) as raised:
        check(words, replace(DEBIAN, **changed))  # type: ignore[arg-type]
    assert (hint or "") in (raised.value.hint or "")


def test_the_root_of_this_machine_is_what_stat_and_mountpoint_say(tmp_path: Path) -> None:
    found = read_mounted(Path("/"))
    assert found.point == Path("/")
    assert subprocess.run([program("mountpoint"), "-q", "/"], check=False).returncode == 0
    said = subprocess.run([program("stat"), "-f", "-c", "%T", "/"], check=True, capture_output=True, text=True).stdout
    assert found.type[:3] == said[:3] or found.type == "overlay"
    if found.source.startswith("/dev/") and Path(found.source).is_block_device():
        assert Path(found.source).stat().st_rdev == Path("/").stat().st_dev or found.type == "btrfs"
    assert read_mounted(tmp_path).point in (tmp_path, *tmp_path.parents)
    assert os.path.ismount(read_mounted(Path("/proc")).point)
    assert read_mounted(Path("/proc")).names == {}
