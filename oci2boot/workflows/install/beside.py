"""An image beside the system that is there: on the file system that it runs from, in its boot directory."""

from pathlib import Path
from typing import Final

from oci2boot.errors import Error, TargetError
from oci2boot.formats.cmdline import split
from oci2boot.store.images import Bootable
from oci2boot.sysroot.machine import LIVE
from oci2boot.system import nvram
from oci2boot.target.mounted import check_found, read_mounted
from oci2boot.workflows.install.disk import LABEL, loader_of
from oci2boot.workflows.progress import Report, Told, Warned

HOST: Final = Path("/")


def check_not_own(root: Path, live: Path = LIVE) -> None:
    """Refuse the physical root, and the verified one, of the machine that runs: it has commands of its own."""
    if (live / "composefs/meta.json").is_file() and (root == HOST or root.samefile(live)):
        raise TargetError(
            f"{root} belongs to this machine, which runs an image already",
            hint="`oci2boot switch SOURCE` brings it to another image",
        )


def check_bootable(root: Path, esp: Path, bootable: Bootable, report: Report) -> None:
    """Refuse a file system that the image's kernel would not find; what is no disk's is for somebody else to place."""
    here = read_mounted(root)
    if not here.source.startswith("/dev/") or bootable.cmdline is None:
        return
    if here.point != root:
        report(Warned(f"{root} is a folder of {here.source}: it boots only where it is the top of a file system"))
        return
    check_found(split(bootable.cmdline), here, read_mounted(esp), bootable.architecture, LABEL)


def boot_first(root: Path, esp: Path, bootable: Bootable, report: Report, *, dry_run: bool) -> None:
    """Have this machine's firmware start our boot loader; the entry of the system that runs stays, as the second."""
    loader = loader_of(bootable)
    if root != HOST or loader is None or not nvram.EFI.is_dir():
        return
    there = read_mounted(esp)
    if dry_run:
        report(Told(f"the firmware would start {loader} first"))
        return
    try:
        if there.disk is None or there.number is None:
            raise TargetError(f"{esp} is on no partition")
        nvram.set_entry(Path("/dev", there.disk), there.number, bootable.title, loader)
    except Error as error:
        report(Warned(f"no entry in the firmware's boot menu: {error.message}; what booted before boots next"))
        return
    report(Told(f"the firmware starts {loader} first; the other entries of its menu are as they were"))
