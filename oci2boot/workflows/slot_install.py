"""A new disk with two slots: one with the image, and an empty one of the same size for its next version."""

from collections.abc import Sequence
from pathlib import Path

from oci2boot.formats.dmverity import Parameters, plan_area
from oci2boot.store.images import Bootable
from oci2boot.store.verity import VerityRecord
from oci2boot.target.entries import EspFile
from oci2boot.target.images import Image
from oci2boot.target.plan import derive_uuid
from oci2boot.target.slots import labels, two_slots
from oci2boot.workflows.slot_deploy import check_slots, record_bytes, record_path


def slot_partitions(
    bootable: Bootable, record: VerityRecord, images: Sequence[Image], seed: bytes, root_size: int | None
) -> list[Image]:
    """Return the partitions of both slots; `root_size` is what a root partition is to have, in bytes."""
    _, _, uki = check_slots(bootable)
    parameters = Parameters(record.algorithm, record.salt)
    return two_slots(
        labels(Path(uki).stem, images),
        root_size,
        lambda size: plan_area(size, parameters).size,
        lambda purpose: derive_uuid(seed, purpose),
    )


def slot_record(bootable: Bootable) -> EspFile:
    """Return the file by which the machine knows its image."""
    _, _, uki = check_slots(bootable)
    return EspFile(record_path(uki), record_bytes(bootable))
