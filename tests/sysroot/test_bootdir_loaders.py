"""Boot loaders that meet one that is there: the newer stays, and it is said. Debian's systemd-boot, shim and GRUB."""

import re
from pathlib import Path

import pytest

from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_plan import plan_boot
from tests.boot.debian import package
from tests.boot.loaders import bookworm, loader, shim
from tests.sysroot.boots import ONE, put, uki

REMOVABLE = "EFI/BOOT/BOOTX64.EFI"


def grub() -> bytes:
    return (package("grub-efi-amd64-signed") / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed").read_bytes()


def meet(esp: Path, there: bytes, new: bytes) -> tuple[bool, tuple[str, ...]]:
    """Return whether the new one took the place, and what was said."""
    put(esp, REMOVABLE, there)
    plan = plan_boot(read_boot_directory(esp), {ONE: uki("1"), REMOVABLE: new}, first=ONE)
    apply_boot(plan, esp)
    return (esp / REMOVABLE).read_bytes() == new, plan.problems


def test_a_loader_of_an_older_release_does_not_replace_a_newer_one(esp: Path) -> None:
    """P.9"""
    assert meet(esp, loader(), bookworm()) == (
        False,
        (f"{REMOVABLE} is systemd-boot 257, newer than 252, and left as it is",),
    )


def test_a_loader_of_an_older_release_is_replaced(esp: Path) -> None:
    """Though the two have other names in .sbat."""
    assert meet(esp, bookworm(), loader()) == (True, ())


def test_the_same_holds_for_shim(esp: Path) -> None:
    older = re.sub(rb"(shim\.debian,1,Debian,shim,)16\.1", rb"\g<1>15.8", shim(), count=1)
    assert meet(esp, shim(), older) == (False, (f"{REMOVABLE} is shim 16.1, newer than 15.8, and left as it is",))
    assert meet(esp, older, shim()) == (True, ())


@pytest.mark.parametrize("sbat", [b".sbat\0", b".none\0"])
def test_grub_is_never_replaced(esp: Path, sbat: bytes) -> None:
    """One that grub-install(8) made says nothing of itself."""
    there = grub().replace(b".sbat\0", sbat)
    taken, said = meet(esp, there, loader())
    assert not taken
    assert said == (f"{REMOVABLE} is {'grub' if sbat[1:2] == b's' else 'another boot loader'}, and left as it is",)
    silent = loader().replace(b".sbat\0", b".none\0").replace(b".sdmagic", b".nomagic")
    assert not meet(esp, there, silent)[0]
