"""An image installed beside an ordinary Debian, in directories that look like one. Witness: bootctl."""

from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.workflows.install.beside import check_not_own
from oci2boot.workflows.machine.directories import install_directories
from oci2boot.workflows.progress import Event, Warned
from tests.oci.layouts import Layout
from tests.sysroot import bootctl
from tests.workflows.machines import ANY_FILE_SYSTEM, FIRST, Machine

MACHINE_ID = "0123456789abcdef0123456789abcdef"
OLD_ENTRY = f"""\
title Debian GNU/Linux 12 (bookworm)
version 6.1.0-32-amd64
sort-key debian
machine-id {MACHINE_ID}
options root=UUID=3f1b-aa ro quiet
linux /{MACHINE_ID}/6.1.0-32-amd64/linux
initrd /{MACHINE_ID}/6.1.0-32-amd64/initrd.img
""".encode()
ROOT: dict[str, bytes] = {
    "etc/fstab": b"UUID=3f1b-aa / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": b"old\n",
    "usr/bin/something": b"#!/bin/sh\n",
    "home/me/letter": b"Dear reader\n",
    "var/lib/dpkg/status": b"Package: dpkg\n",
    "state.txt": b"not ours\n",
}
ESP: dict[str, bytes] = {
    "EFI/debian/shimx64.efi": b"Debian's shim",
    "EFI/debian/grubx64.efi": b"Debian's GRUB",
    "EFI/debian/grub.cfg": b"search.fs_uuid 3f1b-aa root\n",
    "EFI/BOOT/BOOTX64.EFI": b"Debian's shim",
    "loader/loader.conf": b"timeout 7\n",
    f"loader/entries/{MACHINE_ID}-6.1.0-32-amd64.conf": OLD_ENTRY,
    f"{MACHINE_ID}/6.1.0-32-amd64/linux": b"the old kernel",
    f"{MACHINE_ID}/6.1.0-32-amd64/initrd.img": b"the old initramfs",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def debian(tmp_path: Path) -> Machine:
    """A machine that was never ours, and an image for it."""
    made = Machine(Layout(tmp_path / "layout"), tmp_path / "repo", tmp_path / "root", tmp_path / "esp")
    for folder, files in ((made.root, ROOT), (made.esp, ESP)):
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    made.release(FIRST)
    made.convert()
    return made


def test_an_image_is_installed_beside_the_system_that_is_there(debian: Machine) -> None:
    """O.1, D.19: composefs and state appear on the one file system there is; all that was there stays, and boots."""
    said: list[Event] = []
    install_directories(debian.repo, "demo", debian.root, debian.esp, ANY_FILE_SYSTEM, said.append, dry_run=True)
    assert contents(debian.root) == ROOT
    assert contents(debian.esp) == ESP
    (old,) = bootctl.listed(debian.esp)

    plan = install_directories(debian.repo, "demo", debian.root, debian.esp, ANY_FILE_SYSTEM, said.append)
    assert ROOT.items() <= contents(debian.root).items()
    assert ESP.items() <= contents(debian.esp).items()
    assert {path.name for path in debian.root.iterdir()} == {
        "composefs", "etc", "home", "state", "state.txt", "usr", "var"
    }  # fmt: skip
    first, second = bootctl.listed(debian.esp)
    assert f"composefs=?{plan.bootable.root.image}" in first["options"]
    assert [first["isDefault"], second["isDefault"]] == [True, False]
    assert second == {**old, "isDefault": False}
    warnings = [event.text for event in said if isinstance(event, Warned)]
    assert any("EFI/BOOT/BOOTX64.EFI is another boot loader, and left as it is" in text for text in warnings)


def test_its_deployments_are_upgraded_like_any_others(debian: Machine) -> None:
    """O.1: what comes later inherits it."""
    debian.install()
    debian.release({"usr/bin/version": b"two" * 100})
    assert debian.upgrade().outcome == "deployed"
    assert ROOT.items() <= contents(debian.root).items()
    assert [one["type"] for one in bootctl.listed(debian.esp)] == ["type2", "type2", "type1"]


@pytest.mark.parametrize("target", ["/", "/sysroot"])
def test_a_machine_of_ours_is_not_installed_over_itself(debian: Machine, target: str) -> None:
    debian.install()
    with pytest.raises(TargetError, match="runs an image already"):
        check_not_own(debian.root if target == "/sysroot" else Path(target), debian.root)
    check_not_own(debian.esp, debian.root)
    check_not_own(debian.root, debian.esp)
