"""What a live ISO is not, since nothing on it can be written; and is it one?"""

import os

from oci2boot.errors import TargetError
from oci2boot.formats.iso9660 import read_volume
from oci2boot.store.images import Bootable
from oci2boot.target.opened import OpenedDisk
from oci2boot.target.types import ESP_TYPE
from oci2boot.workflows.checks import Checks
from oci2boot.workflows.physical import NOTHING
from oci2boot.workflows.requests import InstallRequest


def check_live(request: InstallRequest, bootable: Bootable) -> None:
    """Refuse an image that no live ISO can hold, and what would have to be written to one."""
    if bootable.verity is None:
        raise TargetError(
            f"{bootable.name} has its files one by one, a live ISO has a root file system in one piece",
            hint="convert it with --mode verity",
        )
    if request.secret:
        raise TargetError("a live ISO is not encrypted", hint="leave out --luks-passphrase-file")
    if request.first_boot != NOTHING:
        raise TargetError(
            "a live ISO has no /etc of its own, where host name, keys and credentials could be",
            hint="put them into the image, or install to a disk",
        )


def what_is_lost(bootable: Bootable) -> str:
    """Say what becomes of the places that can be written."""
    places = [overlay.path for overlay in bootable.verity.overlays] if bootable.verity else []
    if not places:
        return "nothing can be written on a machine that runs from the live ISO"
    return f"what is written to {' and '.join(places)} is in memory: a live ISO keeps none of it"


def check_iso(disk: OpenedDisk, checks: Checks) -> bool:
    """Say whether the disk is an ISO 9660 volume too; then see that firmware starts the right thing of a DVD."""
    with checks.attempt("optical drives"):
        volume = read_volume(lambda offset, size: os.pread(disk.fd, size, offset))
        if volume is None:
            return False
        starts = [part.start for part in disk.of_types({ESP_TYPE})]
        problems = []
        if volume.boot_image not in starts:
            problems.append(f"El Torito starts byte {volume.boot_image}, and no EFI system partition begins there")
        checks.verdict(
            "optical drives", problems, f"ISO 9660 {volume.identifier}: El Torito starts the EFI system partition"
        )
    return True
