"""The main job, proved in a machine: a disk made without root boots, verifies itself, and refuses what was changed.

QEMU emulates the processor, OVMF is the firmware, the kernel is Debian's. Questions reach the guest as credentials.
"""

import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.system.qemu import boot
from tests import vm
from tests.conftest import Initramfs, Installed
from tests.partitions import partition, table
from tests.witness import program

pytestmark = [pytest.mark.boot, pytest.mark.demo]

ROOM = 1 << 30


Reports = tuple[dict[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def reports(installed: Callable[[Initramfs], Installed], tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Boot twice what dracut's image became, on a bigger disk with one byte flipped."""
    folder = tmp_path_factory.mktemp("dracut")
    disk = vm.copy(installed("dracut").disk, folder / "disk.raw")
    vm.flip(disk, vm.object_path(vm.digest_of(vm.FLIPPED, folder)), 70000)
    with disk.open("r+b") as file:
        file.truncate(disk.stat().st_size + ROOM)
    with boot(vm.with_report(vm.machine(disk), reboot=True), folder / "vm") as running:
        running.wait_for(r"(?m)^end$", 2 * vm.BOOT_SECONDS, port="report")
        first, second = running.report.split("\nreboot\n")
    disk.unlink()
    return vm.parse_report(first), vm.parse_report(second)


@pytest.fixture
def report(reports: Reports) -> dict[str, str]:
    return reports[0]


def test_boots_to_the_login_prompt(report: dict[str, str]) -> None:
    """O.10: by what the image has, without Python or a program of ours."""
    assert report["python"] == ""
    assert report["multi-user"] == "active"
    assert report["getty"] == "active"
    assert report["failed-units"] == ""


def test_the_root_is_the_composefs_image(report: dict[str, str]) -> None:
    words = report["root"].split()
    assert words[0] == "overlay"
    assert "verity=require" in words[2]
    assert report["sysroot"].startswith("ext4 ro")


def test_every_object_measures_as_its_name(report: dict[str, str]) -> None:
    assert int(report["objects"]) > 2000
    assert report["measured"] == report["objects"]


def test_a_flipped_byte_is_an_error_that_names_the_file(report: dict[str, str]) -> None:
    assert report["flipped"] == "cat: sizes/1048576: Input/output error"
    assert "FILE CORRUPTED" in report["kernel"]
    position = re.search(r"pos=(\d+)", report["kernel"])
    assert position
    assert int(position[1]) == 70000 // 4096 * 4096


def test_the_system_cannot_be_written(report: dict[str, str]) -> None:
    assert report["usr"].endswith("Read-only file system")
    assert report["top"].endswith("Read-only file system")


def test_etc_and_var_can_be_written_and_last(reports: Reports) -> None:
    first, second = reports
    assert (first["etc"], first["var"]) == ("kept", "kept")
    assert first["etc-kept"].endswith("No such file or directory")
    assert (second["etc-kept"], second["var-kept"]) == ("kept", "kept")


def test_the_root_grows_to_the_disk(report: dict[str, str], installed: Callable[[Initramfs], Installed]) -> None:
    """K0.14"""
    grown = int(report["sysroot-size"]) - table(installed("dracut").disk)[1]["size"]
    assert grown > ROOM * 0.9


def test_files_arrive_as_the_layers_had_them(report: dict[str, str]) -> None:
    assert report["intact"].split()[0] == hashlib.sha256(b"2" * 20000001).hexdigest()
    assert report["sparse"].split()[0] == hashlib.sha256(bytes(8 << 20) + b"end").hexdigest()
    assert report["inline"] == "6" * 64
    assert report["set-id"] == "nobody:12345:6755"
    assert report["unnamed-ids"] == "54321:54322:1777"
    assert report["capability"].endswith("cap_net_raw=ep")
    assert re.fullmatch(r"2:\d+", report["hard-links"])
    assert report["names"].split(";") == [
        "-dash",
        "0" * 249 + "7",
        "64.hard",
        "65536.hard",
        "=a=b",
        r"latin1-\344",
        r"new\nline",
        r"sm\303\266rg\303\245s",
        r"with\ space",
        'with"quote',
        r"with\\backslash",
    ]
    assert report["deleted"].endswith("No such file or directory")
    assert report["replaced"] == "replaced"
    assert report["pipe"] == "fifo"


def test_the_checkers_of_the_file_systems_find_nothing(
    installed: Callable[[Initramfs], Installed], tmp_path: Path
) -> None:
    disk = installed("dracut").disk
    subprocess.run([program("sfdisk"), "--verify", disk], check=True)
    subprocess.run([program("fsck.fat"), "-n", partition(disk, "ESP", tmp_path / "esp")], check=True)
    subprocess.run([program("e2fsck"), "-fn", f"{disk}?offset={table(disk)[1]['start']}"], check=True)
