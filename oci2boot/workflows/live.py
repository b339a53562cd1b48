"""What a live ISO is not: nothing on it can be written."""

from oci2boot.errors import TargetError
from oci2boot.store.images import Bootable
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
