"""A disk that is an ISO 9660 volume too."""

import os

from oci2boot.formats.iso9660 import read_volume
from oci2boot.target.opened import OpenedDisk
from oci2boot.target.types import ESP_TYPE
from oci2boot.workflows.verify.checks import Checks


def check_iso(disk: OpenedDisk, checks: Checks) -> bool:
    """Say whether the disk is an ISO 9660 volume too; if it is, check what firmware starts of a DVD."""
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
