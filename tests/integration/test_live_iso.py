"""A live ISO in the DVD drive of a machine, made by an ordinary user: each stage of its boot finds what it needs.

QEMU emulates the machine, OVMF is the firmware, the kernel is Debian's; veritysetup says what the kernel verifies.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.system.qemu import boot
from tests import vm
from tests.conftest import Initramfs, locked

pytestmark = [pytest.mark.boot, pytest.mark.demo]

QUESTIONS = r"""
say verity 'veritysetup status root'
say etc-is 'findmnt -no FSTYPE,OPTIONS /etc'
say drive 'losetup --noheadings --output BACK-FILE,RO'
say remounted 'mount -o remount,rw /'
"""


@pytest.fixture(scope="module")
def report(
    shared: Path, demo_image: Callable[[Initramfs], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    layout = demo_image("dracut")
    home = vm.users_folder(shared / "live")
    repo, iso = home / "repo", home / "live.iso"
    with locked(shared / "live.lock"):
        vm.oci2boot(
            "convert", f"oci:{layout}:latest", "--repo", repo, "--mode", "verity", "--no-verity-signature",
            "--initrd", "builtin", "--console", "serial", "--timeout", "1", "--karg", "no_timer_check", home=home,
        )  # fmt: skip
        vm.oci2boot("install", "--repo", repo, "--target", iso, home=home)
        assert "live ISO" in vm.oci2boot("verify", iso, home=home)
    machine = vm.with_report(replace(vm.machine(iso), optical=True), content=False, more=QUESTIONS)
    with boot(machine, tmp_path_factory.mktemp("live") / "vm") as running:
        running.wait_for(r"(?m)^end$", 2 * vm.BOOT_SECONDS, port="report")
        told = vm.parse_report(running.report)
    iso.unlink()
    return told


def test_it_boots_from_a_dvd(report: dict[str, str]) -> None:
    """K0.13: without a partition that the kernel itself would find."""
    assert report["multi-user"] == "active"
    assert report["failed-units"] == ""
    assert report["drive"].split() == ["/dev/sr0", "1"]


def test_the_root_is_verified_as_it_is_read(report: dict[str, str]) -> None:
    """K0.1, K1.19: dm-verity stands between the file system and the medium, and no file is mounted."""
    assert report["root"].split()[:2] == ["erofs", "/dev/mapper/root"]
    words = report["verity"].split()
    assert words[words.index("status:") + 1].rstrip(";") == "verified"
    assert words[words.index("mode:") + 1].rstrip(";") == "readonly"


def test_what_is_written_is_in_memory(report: dict[str, str]) -> None:
    """K0.3: the places that an image keeps on a disk can be written to here, and nothing else can."""
    assert report["etc"] == report["var"] == "kept"
    assert report["etc-is"].startswith("overlay")
    assert "Read-only file system" in report["usr"]
    assert "Read-only file system" in report["top"]
    assert report["remounted"] != ""
