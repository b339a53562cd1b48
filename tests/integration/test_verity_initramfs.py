"""A root file system under dm-verity that a systemd initramfs opens: what the command line appends changes nothing."""

import os
import subprocess
from pathlib import Path

import pytest

from oci2boot.system.qemu import boot, kernel_arguments
from tests import vm
from tests.boot import debian
from tests.conftest import ROOT

pytestmark = [pytest.mark.boot, pytest.mark.demo, pytest.mark.long]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a disk whose initramfs is dracut's, with systemd-veritysetup."""
    home = tmp_path_factory.mktemp("verity-initramfs")
    done = subprocess.run([ROOT / "scripts/machine-image", "crypt"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words: list[str | Path] = ["--mode", "verity", "--compression", "zstd,level=3", "--initrd", "dracut"]
    words += ["--no-verity-signature", "--repo", home / "repo"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(debian.erofs_utils("mkfs.erofs").parent), prepend=os.pathsep)
        vm.oci2boot("convert", f"oci:{done.stdout.strip()}:latest", *words, home=home, demote=False)
    vm.oci2boot("install", "--target", home / "disk.raw", "--repo", home / "repo", home=home, demote=False)
    return home / "disk.raw"


def test_the_promised_root_boots(disk: Path, tmp_path: Path) -> None:
    """C.36"""
    with boot(vm.with_report(vm.machine(disk), content=False), tmp_path / "vm") as running:
        running.wait_for(r"(?m)^end$", vm.BOOT_SECONDS, port="report")
        report, console = vm.parse_report(running.report), running.console
    assert report["multi-user"] == "active"
    assert "erofs" in report["root"]
    assert "root is under dm-verity, its root hash" in console


@pytest.mark.parametrize("word", ["root=/dev/vda1", "systemd.verity=no root=/dev/vda2"])
def test_another_root_is_not_booted(word: str, disk: Path, tmp_path: Path) -> None:
    """C.36, B.12: the host of a virtual machine appends it, and the last word counts; under Secure Boot too."""
    assert "not under dm-verity" in vm.refusal(disk, tmp_path, kernel_arguments(word))


def test_what_does_not_verify_is_not_ignored(disk: Path, tmp_path: Path) -> None:
    """C.36"""
    word = "systemd.verity_root_options=ignore-corruption"
    assert "ignore what does not verify" in vm.refusal(disk, tmp_path, kernel_arguments(word))
