"""Boot chains without UKI: systemd-boot starts a type 1 entry, and QEMU the files that a board's boot loader would.

The digest is in the initramfs, and no command line can name another.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.system.qemu import DirectBoot, boot
from tests import vm
from tests.conftest import Initramfs

pytestmark = [pytest.mark.boot, pytest.mark.demo]


@pytest.fixture(scope="module")
def home(shared: Path) -> Path:
    return vm.users_folder(shared / "boot-files")


@pytest.fixture(scope="module")
def made(home: Path, demo_image: Callable[[Initramfs], Path]) -> tuple[Path, Path]:
    """Return a disk and the plain files that boot it; systemd of dracut's initramfs has to find it by its label."""
    words: list[str | Path] = ["--repo", home / "repo"]
    source = f"oci:{demo_image('dracut')}:latest"
    vm.oci2boot("convert", source, home / "files", "--name", "files", "--flow", "files", *words, home=home)
    vm.oci2boot("install", "files", "--target", home / "files.raw", *words, home=home)
    return home / "files.raw", home / "files"


def test_an_entry_boots_by_the_digest_in_its_initramfs_read_on_demand(
    home: Path, demo_image: Callable[[Initramfs], Path]
) -> None:
    """C.16, C.20, D.5: the rootfs image is opened by its digest, and `test` says what reading it all would take."""
    words: list[str | Path] = ["--repo", home / "repo"]
    source = f"oci:{demo_image('dracut')}:latest"
    vm.oci2boot("convert", source, "--name", "type1", "--flow", "type1", "--read", "on-demand", *words, home=home)
    vm.oci2boot("install", "type1", "--target", home / "type1.raw", *words, home=home)
    tested = json.loads(vm.oci2boot("test", home / "type1.raw", "--tpm", "no", "--json", home=home))
    assert (tested["ok"], tested["read"]) == (True, "on-demand")
    seconds = tested["image_seconds"]
    assert 0 <= seconds["on-demand"] <= seconds["ahead"]


def test_plain_files_boot_the_disk_without_anything_of_its_boot_partition(made: tuple[Path, Path], home: Path) -> None:
    """C.16: QEMU gives the firmware kernel, initramfs and command line; the manifest holds them to their digests."""
    disk, files = made
    tested = json.loads(vm.oci2boot("test", disk, "--files", files, "--json", home=home))
    digest = json.loads((files / "manifest.json").read_bytes())["rootfs"]
    assert (tested["ok"], tested["digest"], tested["read"]) == (True, digest, "ahead")


def test_a_command_line_with_another_digest_does_not_boot(made: tuple[Path, Path], tmp_path: Path) -> None:
    """C.16, C.36: as whoever can write the line, and not the initramfs, would have it."""
    disk, files = made
    line = (files / "cmdline").read_text().strip()
    digest = json.loads((files / "manifest.json").read_bytes())["rootfs"]
    assert digest in line
    other = "ab" * 32
    direct = DirectBoot(files / "kernel", files / "initramfs", line.replace(digest, other))
    with boot(replace(vm.machine(disk), direct=direct), tmp_path / "vm") as running:
        running.wait_end(vm.BOOT_SECONDS)
        console = running.console
    assert "login:" not in console
    assert f"FATAL: the initramfs promises sha256:{digest}, the command line has composefs={other}" in console
