"""An image whose initramfs is of initramfs-tools: it boots, and refuses like the other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.system.qemu import boot
from tests import vm
from tests.conftest import Initramfs, Installed

pytestmark = [pytest.mark.boot, pytest.mark.demo]


def test_an_image_with_initramfs_tools_boots_too(installed: Callable[[Initramfs], Installed], tmp_path: Path) -> None:
    machine = vm.with_report(vm.machine(installed("initramfs-tools").disk))
    with boot(machine, tmp_path / "vm") as running:
        running.wait_for(r"(?m)^end$", vm.BOOT_SECONDS, port="report")
        report = vm.parse_report(running.report)
    assert report["multi-user"] == "active"
    assert report["root"].startswith("overlay")
    assert "verity=require" in report["root"]
    assert report["measured"] == report["objects"]
    assert report["usr"].endswith("Read-only file system")
    assert report["flipped"] == ""


def test_no_composefs_argument_is_refused(changed: Callable[[Initramfs], Path], tmp_path: Path) -> None:
    disk = changed("initramfs-tools")
    promise = vm.promised_digest(disk, tmp_path).encode()
    name, uki = vm.read_uki(disk, tmp_path)
    vm.replace_uki(disk, name, uki.replace(b"composefs=" + promise, b"something=" + promise), tmp_path)
    assert "no composefs argument" in vm.refusal(disk, tmp_path)


def test_another_image_under_the_promised_name_is_refused(changed: Callable[[Initramfs], Path], tmp_path: Path) -> None:
    """The impostor is a whole fs-verity file: only its digest is not the promised one."""
    disk = changed("initramfs-tools")
    digest = vm.promised_digest(disk, tmp_path)
    impostor = vm.digest_of(vm.FLIPPED, tmp_path)
    vm.debugfs(disk, f"unlink {vm.object_path(digest)}", write=True)
    vm.debugfs(disk, f"ln {vm.object_path(impostor)} {vm.object_path(digest)}", write=True)
    assert f"promised is the image sha256:{digest}, found is" in vm.refusal(disk, tmp_path)


def test_a_disk_that_is_not_found_restarts_the_machine(changed: Callable[[Initramfs], Path], tmp_path: Path) -> None:
    """B.12: whoever renamed the file system must get no shell."""
    disk = changed("initramfs-tools")
    vm.debugfs(disk, "ssv volume_name gone", write=True)
    reason = vm.refusal(disk, tmp_path)
    assert "no shell is given" in reason
    assert "LABEL=oci2boot does not exist" in reason
