"""When a soft reboot will do, and what a machine runs after one; the reboot itself is in the integration tests."""

from pathlib import Path

import pytest

from oci2boot.boot.uki import UkiParts, build_uki
from oci2boot.digest import VerityDigest
from oci2boot.errors import TargetError
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.machine import Sysroot
from oci2boot.sysroot.nextroot import root_digest
from oci2boot.sysroot.state import SysrootState
from oci2boot.workflows.machine.soft_reboot import check_same_kernel
from tests.sysroot.boots import addon, programs, put

OLD, NEW = "ab" * 32, "cd" * 32


def uki(
    digest: str, words: str = "rw quiet", *, kernel: bytes = b"", uname: str = "6.12", initrd: bytes = b""
) -> bytes:
    stub, program, _ = programs()
    release = b'ID=debian\nVERSION_ID="13"\n'
    parts = UkiParts(
        kernel=program + kernel,
        initrds=(b"070701" + initrd,),
        cmdline=f"{words} composefs={digest}",
        os_release=release,
        uname=uname,
    )
    return build_uki(stub, parts)


def state(esp: Path, booted: str | None = OLD) -> SysrootState:
    found = VerityDigest.parse(booted) if booted else None
    return SysrootState(Sysroot(esp.parent, esp, live=True), read_boot_directory(esp), (), found)


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    put(tmp_path / "esp", "EFI/Linux/a_1.efi", uki(OLD))
    return tmp_path / "esp"


def test_the_same_kernel_may_go_on(esp: Path) -> None:
    """P.11: another initramfs is no hindrance, it is not run."""
    put(esp, "EFI/Linux/a_2.efi", uki(NEW, initrd=b"another"))
    check_same_kernel(state(esp), VerityDigest.parse(NEW))
    for name in ("a_1", "a_2"):
        put(esp, f"EFI/Linux/{name}.efi.extra.d/local.addon.efi", addon("console=ttyS0"))
    check_same_kernel(state(esp), VerityDigest.parse(NEW))


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (uki(NEW, kernel=b"\0"), "another kernel"),
        (uki(NEW, uname="6.13"), "another kernel"),
        (uki(NEW, "rw quiet nosmt"), "other kernel arguments"),
        (uki("?" + NEW), "insists on fs-verity"),
        (None, "insists on fs-verity"),
    ],
)
def test_anything_else_takes_a_restart(esp: Path, new: bytes | None, says: str) -> None:
    """P.11, D.23: never into a root that is not verified."""
    if new:
        put(esp, "EFI/Linux/a_2.efi", new)
    with pytest.raises(TargetError, match=says) as raised:
        check_same_kernel(state(esp), VerityDigest.parse(NEW))
    assert raised.value.hint == "systemctl reboot"


def test_an_addon_of_one_alone_counts(esp: Path) -> None:
    put(esp, "EFI/Linux/a_2.efi", uki(NEW))
    put(esp, "EFI/Linux/a_2.efi.extra.d/local.addon.efi", addon("console=ttyS0"))
    with pytest.raises(TargetError, match="kernel arguments"):
        check_same_kernel(state(esp), VerityDigest.parse(NEW))


@pytest.mark.parametrize("booted", [None, NEW])
def test_where_nothing_is_new_nothing_is_done(esp: Path, booted: str | None) -> None:
    with pytest.raises(TargetError, match="nothing new"):
        check_same_kernel(state(esp, booted), VerityDigest.parse(NEW))


LINE = "21 1 0:20 / / ro - overlay composefs"
OPTIONS = "ro,lowerdir=/run/a::/run/b,redirect_dir=on,verity=require,metacopy=on"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (f"21 1 0:20 / / ro,relatime shared:1 - overlay composefs:{NEW} {OPTIONS}", NEW),
        (f"{LINE}:{OLD} {OPTIONS}\n30 21 0:22 / / ro - overlay composefs:{NEW} {OPTIONS}", NEW),
        (f"21 1 0:20 / / ro - overlay oci2boot {OPTIONS}", None),
        (f"{LINE}:{NEW} ro,lowerdir=/run/a::/run/b", None),
        (f"21 1 0:20 / /mnt ro - overlay composefs:{NEW} {OPTIONS}", None),
        (f"21 1 0:20 / / rw - ext4 composefs:{NEW} {OPTIONS}", None),
        (f"{LINE}:{NEW[:-1]} {OPTIONS}", None),
        (f"{LINE}:{NEW} ro,lowerdir=/x\\054verity=require::/run/b", None),
    ],
)  # fmt: skip
def test_the_root_mount_names_what_runs(lines: str, found: str | None) -> None:
    """P.11: proc_pid_mountinfo(5); only of a root that the kernel holds to its digests, and the topmost."""
    digest = root_digest(lines + "\n")
    assert (digest.hex if digest else None) == found
