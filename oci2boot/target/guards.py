"""What keeps an installation off a device that somebody still needs."""

from oci2boot.errors import OccupiedError, TargetError
from oci2boot.system.block import BlockDevice


def check_unused(device: BlockDevice) -> None:
    """Refuse anything but a whole disk that nothing uses."""
    path = device.path
    if device.disk:
        raise TargetError(f"{path} is a partition of {device.disk}", hint=f"name the whole disk, /dev/{device.disk}")
    if device.read_only:
        raise TargetError(f"{path} is read-only")
    if not device.size:
        raise TargetError(f"{path} has no medium")
    if device.uses:
        raise TargetError(
            f"{path} is in use: {'; '.join(device.uses)}",
            hint="if it is the right disk, unmount it, swapoff it, and stop what uses it",
        )


def check_empty(device: BlockDevice) -> None:
    if device.signatures:
        raise OccupiedError(
            f"{device.path} is not empty: it has {', '.join(device.signatures)}", hint="is it the right disk?"
        )
