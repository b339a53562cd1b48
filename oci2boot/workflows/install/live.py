"""What a live ISO is not, since nothing on it can be written; and is it one?"""

from collections.abc import Iterator

from oci2boot.boot.programs import find_program
from oci2boot.errors import TargetError
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot
from oci2boot.tree.model import Directory
from oci2boot.workflows.install.physical import NOTHING
from oci2boot.workflows.requests import InstallRequest


def check_live(request: InstallRequest, bootable: Bootable) -> None:
    """Refuse an image that no live ISO can hold, and what would have to be written to one."""
    if not isinstance(bootable.root, DmVerityRoot):
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


def warnings_of(bootable: Bootable, tree: Directory) -> Iterator[str]:
    """Say what becomes of the places that can be written, and which media it boots from."""
    places = [overlay.path for overlay in bootable.root.overlays] if isinstance(bootable.root, DmVerityRoot) else []
    if places:
        yield f"what is written to {' and '.join(places)} is in memory: a live ISO keeps none of it"
    else:
        yield "nothing can be written on a machine that runs from the live ISO"
    if bootable.options.get("initrd") != "builtin":
        yield "the image's own initramfs finds the root on a USB stick, not on a DVD: convert it with --initrd builtin"
    elif not find_program(tree, b"losetup"):
        yield "the image has no losetup (package mount or util-linux): it boots from USB sticks, not from DVDs"
