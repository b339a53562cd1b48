"""A new disk with two slots: one with the image, and an empty one of the same size for its next version."""

import json
from collections.abc import Sequence
from pathlib import Path

from oci2boot.boot.names import EXTRA, RECORD
from oci2boot.digest import RootHash
from oci2boot.errors import TargetError
from oci2boot.formats.dmverity import Parameters, plan_area
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot
from oci2boot.sysroot.bootdir_plan import is_entry
from oci2boot.target.entries import EspFile
from oci2boot.target.images import Image
from oci2boot.target.plan import derive_uuid
from oci2boot.target.slots import labels, two_slots


def slot_partitions(
    bootable: Bootable, root: DmVerityRoot, images: Sequence[Image], seed: bytes, root_size: int | None
) -> list[Image]:
    """Return the partitions of both slots; `root_size` is what a root partition is to have, in bytes."""
    _, _, uki = check_slots(bootable)
    parameters = Parameters(root.algorithm, root.salt)
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


def record_bytes(bootable: Bootable) -> bytes:
    """Return what lies beside a UKI, so that the machine knows where its next version comes from."""
    return json.dumps(bootable.to_json(), indent=2, sort_keys=True).encode() + b"\n"


def record_path(uki: str) -> str:
    return f"{uki}{EXTRA}/{RECORD}"


def check_slots(bootable: Bootable) -> tuple[DmVerityRoot, RootHash, str]:
    """Return the root, its hash and the UKI of an image that may be in a slot; `TargetError` for others."""
    root = bootable.root
    if not isinstance(root, DmVerityRoot) or root.root_hash is None:
        raise TargetError(
            f"{bootable.name} has no root hash: two slots are told apart by theirs",
            hint="convert it with --mode verity, and without --no-verity",
        )
    if root.karg not in (bootable.cmdline or "").split():
        raise TargetError(
            f"the command line of {bootable.name} does not name its root hash",
            hint="--verity-karg roothash or systemd does, veritytab does not",
        )
    ukis = [path for path in bootable.esp if is_entry(path)]
    if len(ukis) != 1:
        raise TargetError(
            f"{bootable.name} has {len(ukis) or 'no'} entries for the boot menu, one is needed",
            hint="--loader direct is for disks that are never upgraded",
        )
    return root, root.root_hash, ukis[0]
