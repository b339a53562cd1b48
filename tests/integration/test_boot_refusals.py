"""What an initramfs of dracut refuses to boot, and the words it has for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.system.qemu import kernel_arguments
from tests import vm
from tests.conftest import Initramfs, Installed
from tests.partitions import table

pytestmark = [pytest.mark.boot, pytest.mark.demo]


def test_two_composefs_arguments_are_refused(installed: Callable[[Initramfs], Installed], tmp_path: Path) -> None:
    """O.15, C.36: the host of a virtual machine can append to the command line, under Secure Boot too."""
    argument = f"composefs={'0' * 64}"
    reason = vm.refusal(installed("dracut").disk, tmp_path, kernel_arguments(argument))
    assert "more than one composefs argument" in reason
    assert argument in reason


def test_no_composefs_argument_is_refused(changed: Callable[[Initramfs], Path], tmp_path: Path) -> None:
    """O.15, C.31"""
    disk = changed("dracut")
    promise = vm.promised_digest(disk, tmp_path).encode()
    name, uki = vm.read_uki(disk, tmp_path)
    vm.replace_uki(disk, name, uki.replace(b"composefs=" + promise, b"something=" + promise), tmp_path)
    assert "no composefs argument" in vm.refusal(disk, tmp_path)


def test_a_flipped_byte_in_the_image_is_refused(changed: Callable[[Initramfs], Path], tmp_path: Path) -> None:
    """Metadata that no boot would touch, in the middle of the EROFS image."""
    disk = changed("dracut")
    digest = vm.promised_digest(disk, tmp_path)
    vm.flip(disk, vm.object_path(digest), 300_001)
    reason = vm.refusal(disk, tmp_path)
    assert f"promised is the image sha256:{digest}" in reason
    assert "CORRUPTED" in reason


def test_a_disk_that_cannot_be_mounted_restarts_the_machine(
    changed: Callable[[Initramfs], Path], tmp_path: Path
) -> None:
    """B.12: nothing of ours was started yet, and whoever wrote to the disk must get no shell, nor a machine that hangs.

    ext4's s_magic is at 0x38 of the superblock: kernel documentation, filesystems/ext4/super.rst.
    """
    disk = changed("dracut")
    with disk.open("r+b") as file:
        file.seek(table(disk)[1]["start"] + 1024 + 0x38)
        assert file.read(2) == b"\x53\xef"
        file.seek(-2, 1)
        file.write(b"\0\0")
    assert "no shell is given: emergency.service" in vm.refusal(disk, tmp_path)
