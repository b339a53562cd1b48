"""A root file system under dm-verity, on a disk that an ordinary user made.

OVMF checks the UKI, Debian's kernel the root hash's signature and every block. The kernel's and veritysetup's words are
the evidence.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from oci2boot.system.qemu import Firmware, VirtualMachine, boot, find_firmware
from oci2boot.workflows.keys.generate import enroll_in_firmware
from tests import vm
from tests.boot import debian
from tests.conftest import Initramfs
from tests.flips import damaged
from tests.keys import make, openssl
from tests.partitions import partition, table
from tests.witness import program

pytestmark = [pytest.mark.boot, pytest.mark.demo]

ROOM = 1 << 30
REPORT = r"""
say hostname 'cat /etc/hostname'
say kept-size 'df -B1 --output=size /var | tail -n 1'
say verity 'veritysetup status root'
say remount 'mount -o remount,rw /'
say hard-link 'ln /usr/bin/true /var/true'
say bind 'mkdir -p /run/usr; mount --bind /usr /run/usr; mount -o remount,bind,rw /run/usr; touch /run/usr/written'
say device 'echo x | dd of=/dev/mapper/root'
say intact 'sha256sum </usr/share/demo/sizes/20000001'
say flipped 'cat /usr/share/demo/sizes/1048576 >/dev/null'
say kernel 'dmesg | grep "device-mapper: verity"'
say verity-then 'veritysetup status root'
"""


@dataclass(frozen=True, slots=True)
class Made:
    disk: Path
    firmware: Firmware
    """With our certificate in db."""

    @property
    def root_hash(self) -> str:
        return "".join(part["uuid"] for part in table(self.disk)[1:3]).replace("-", "").lower()

    def machine(self, disk: Path) -> VirtualMachine:
        return VirtualMachine(disk=disk, firmware=self.firmware)


@pytest.fixture(scope="module")
def made(demo_image: Callable[[Initramfs], Path], shared: Path) -> Iterator[Made]:
    home = vm.users_folder(shared / "verity")
    keys, repo, disk = home / "keys", home / "repo", home / "disk.raw"
    erofs_utils = debian.erofs_utils("mkfs.erofs").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(erofs_utils), prepend=os.pathsep)
        vm.oci2boot("keys", "generate", keys, home=home)
        words: list[str | Path] = ["--mode", "verity", "--compression", "zstd,level=3", "--initrd", "builtin"]
        words += ["--secureboot-key", keys / "db.key", "--secureboot-certificate", keys / "db.crt"]
        vm.oci2boot("convert", f"oci:{demo_image('dracut')}:latest", "--repo", repo, *words, home=home)
    vm.oci2boot("install", "--target", disk, "--repo", repo, "--hostname", "verity-box", home=home)
    vm.oci2boot("verify", disk, "--db", keys / "db.crt", home=home)
    shutil.rmtree(repo)
    firmware, variables = find_firmware(secure=True), home / "enrolled.fd"
    enroll_in_firmware(keys, variables, firmware.variables)
    yield Made(disk, Firmware(firmware.code, variables, secure=True))
    disk.unlink()


def place_of(disk: Path, path: str, folder: Path) -> int:
    """Return where a file's content is on the disk, by dump.erofs."""
    root = partition(disk, "root", folder / "root")
    argv: list[str | Path] = [debian.erofs_utils("dump.erofs"), f"--path={path}", "-e", root]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    root.unlink()
    extent = re.search(r"^ +0: .*: +(\d+)\.\.", said, re.MULTILINE)
    assert extent, said
    return int(table(disk)[1]["start"]) + int(extent[1])


@dataclass(frozen=True, slots=True)
class Booted:
    first: dict[str, str]
    second: dict[str, str]
    console: str


@pytest.fixture(scope="module")
def booted(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Booted:
    """Boot twice, on a bigger disk with one byte flipped in a file that no boot needs."""
    folder = tmp_path_factory.mktemp("verity")
    disk = vm.copy(made.disk, folder / "disk.raw")
    with disk.open("r+b") as file:
        file.truncate(disk.stat().st_size + ROOM)
    machine = vm.with_report(made.machine(disk), content=False, reboot=True, more=REPORT)
    with (
        damaged(disk, place_of(disk, "/usr/share/demo/sizes/1048576", folder) + 7),
        boot(machine, folder / "vm") as running,
    ):
        running.wait_for(r"(?m)^end$", 2 * vm.BOOT_SECONDS, port="report")
        first, second = running.report.split("\nreboot\n")
        console = running.console
    disk.unlink()
    return Booted(vm.parse_report(first), vm.parse_report(second), console)


def test_the_kernel_takes_the_signature_of_the_root_hash(booted: Booted, made: Made) -> None:
    """K0.1, K0.12, K1.1: by veritysetup, in the initramfs and in the machine that came up."""
    assert (booted.first["multi-user"], booted.first["failed-units"]) == ("active", "")
    assert booted.first["root"].split()[:2] == ["erofs", "/dev/mapper/root"]
    for said in (booted.console, booted.first["verity"]):
        assert "verified (with signature)" in said
        assert made.root_hash in said


def test_the_system_cannot_be_written_in_any_way(booted: Booted) -> None:
    """K0.3, K0.11, K0.17"""
    first = booted.first
    for name in ("usr", "top", "bind"):
        assert first[name].endswith("Read-only file system")
    assert first["root"].split()[2].startswith("ro")
    assert "read-only" in first["remount"] or "write-protected" in first["remount"]
    assert "Invalid cross-device link" in first["hard-link"]
    assert "Operation not permitted" in first["device"] or "Read-only" in first["device"]


def test_etc_and_var_can_be_written_and_last(booted: Booted) -> None:
    """K0.3, K0.4, P.8: and begin with what a new machine was told."""
    first, second = booted.first, booted.second
    assert first["hostname"] == "verity-box"
    assert (first["etc"], first["var"]) == ("kept", "kept")
    assert first["etc-kept"].endswith("No such file or directory")
    assert (second["etc-kept"], second["var-kept"]) == ("kept", "kept")


def test_what_can_be_written_grows_to_the_disk(booted: Booted, made: Made) -> None:
    """K0.14"""
    assert int(booted.first["kept-size"]) - table(made.disk)[-1]["size"] > ROOM * 0.8


def test_one_flipped_byte_is_an_error(booted: Booted) -> None:
    """K0.9"""
    first = booted.first
    assert first["flipped"].endswith("Input/output error")
    assert "is corrupted" in first["kernel"]
    assert "status:      corrupted" in first["verity-then"]
    assert first["intact"].split()[0] == hashlib.sha256(b"2" * 20000001).hexdigest()


# ---- what must not boot


def refused(made: Made, disk: Path, folder: Path) -> str:
    with boot(made.machine(disk), folder / "vm") as running:
        running.wait_end(vm.BOOT_SECONDS)
        console = running.console
    assert "login:" not in console
    reason = re.search(r"oci2boot: FATAL: .*", console)
    assert reason, console[-3000:]
    return console


def credential(disk: Path) -> tuple[str, str]:
    """Return the ESP for mtools, and the path of the root hash's signature there."""
    esp = f"{disk}@@{table(disk)[0]['start']}"
    listing = subprocess.check_output([program("mdir"), "-b", "-s", "-i", esp, "::EFI/Linux"], text=True)
    (path,) = (line for line in listing.splitlines() if line.endswith(".cred"))
    return esp, path


def test_a_flipped_byte_of_the_hash_tree_is_refused(made: Made, tmp_path: Path) -> None:
    """K0.9: in the top of the tree, which everything needs."""
    disk = vm.copy(made.disk, tmp_path / "disk.raw")
    with damaged(disk, table(disk)[2]["start"] + 4096 + 5):
        assert "is corrupted" in refused(made, disk, tmp_path)


def test_a_signature_by_a_stranger_is_refused(made: Made, tmp_path: Path) -> None:
    """K1.1: by the kernel, which has no such key."""
    disk, stranger = vm.copy(made.disk, tmp_path / "disk.raw"), make(tmp_path, "stranger")
    signed = openssl(
        "smime", "-sign", "-binary", "-noattr", "-outform", "DER", "-inkey", stranger.key, "-signer", stranger.path,
        data=made.root_hash.encode(),
    )  # fmt: skip
    esp, path = credential(disk)
    subprocess.run([program("mcopy"), "-o", "-i", esp, "-", path], input=signed, check=True)
    assert "dm-verity refuses the root hash" in refused(made, disk, tmp_path)


def test_a_root_hash_without_signature_is_refused(made: Made, tmp_path: Path) -> None:
    """K1.1"""
    disk = vm.copy(made.disk, tmp_path / "disk.raw")
    esp, path = credential(disk)
    subprocess.run([program("mdel"), "-i", esp, path], check=True)
    with disk.open("r+b") as file:
        file.seek(table(disk)[3]["start"])
        file.write(bytes(16384))
    assert "signature" in refused(made, disk, tmp_path)
