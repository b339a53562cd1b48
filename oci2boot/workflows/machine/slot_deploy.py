"""A converted image onto the slot of a disk that is not in use: boot entries of what was there go first, then the
partitions are written, looked at again and named, and the new UKI comes last.

Stopped at any point, the machine boots what it booted before; run again, it completes.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oci2boot.digest import RootHash
from oci2boot.errors import StoreError, TargetError
from oci2boot.formats.gpt import Gpt
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootDirectory, BootEntry
from oci2boot.sysroot.bootdir_plan import plan_boot, plan_default, plan_remove
from oci2boot.sysroot.bootdir_steps import BootPlan, Source, Write, sha256_of, source_size
from oci2boot.target.plan import derive_uuid
from oci2boot.target.slot_disk import SlotDisk
from oci2boot.target.slots import Slot, SlotWrite, choose_slot, labels
from oci2boot.workflows.install.slots import check_slots, record_bytes, record_path
from oci2boot.workflows.install.verity_disk import image_partitions
from oci2boot.workflows.machine.deploy import tries_of
from oci2boot.workflows.machine.model import Machine, MachineState
from oci2boot.workflows.progress import Report, Step, Told, Warned


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    bootable: Bootable
    root_hash: RootHash
    writes: tuple[SlotWrite, ...]
    """Nothing where the slot is complete."""
    kept: BootEntry | None
    """What the machine boots until this is done, and falls back to."""
    doomed: tuple[BootEntry, ...]
    """Entries whose slot is overwritten, or gone."""
    new: dict[str, Source]
    """Files of the boot directory."""
    uki: str
    tries: int | None
    boot: BootPlan
    """As it would be made of the boot directory as it is now."""

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.bootable.to_json(),
            "root_hash": str(self.root_hash),
            "partitions": [
                {"number": write.partition.number, "label": write.image.label, "guid": write.image.guid}
                | {"size": write.partition.size, "used": write.image.used}
                for write in self.writes
            ],
            "kept": self.kept.id if self.kept else None,
            "removed": [entry.id for entry in self.doomed],
            "boot": self.boot.to_json(),
        }


def plan_slot(state: MachineState, gpt: Gpt, repository: Repository, bootable: Bootable) -> SlotPlan:
    """Decide what goes where; `TargetError` with what is needed and what there is, before anything is written."""
    record, root_hash, uki = check_slots(bootable)
    kept = state.current.entries[0] if state.current else None
    if state.booted and kept is None:
        raise TargetError(f"no boot entry of ours starts what runs, {state.booted}")
    images = image_partitions(repository, bootable, record, root_hash.raw, None)
    images = labels(Path(uki).stem, images)
    slots = {one.entries[0].path: one.slot for one in state.deployments if one.slot}
    there = next((slot for slot in slots.values() if slot.root_hash == root_hash), None)
    writes: list[SlotWrite] = []
    if there is None or len(there.partitions) != len(images):
        # What another tool put there is not ours to overwrite.
        protected = [one.slot for one in state.deployments if one.slot and (one == state.current or not one.own)]
        if there and there in protected:
            raise TargetError(
                f"the root file system {root_hash} runs, and has another signature: it cannot be replaced while it runs"
            )
        writes = choose_slot(gpt, images, protected)
    overwritten = {write.partition.number for write in writes}
    doomed = [
        entry
        for entry in state.directory.entries
        if entry.own and entry != kept and _is_doomed(slots.get(entry.path), overwritten)
    ]
    new: dict[str, Source] = {path: _object(repository, digest) for path, digest in bootable.esp.items()}
    new[record_path(uki)] = record_bytes(bootable)
    tries = tries_of(read_rootfs(repository.read_object(bootable.root.tree)))
    boot = _plan_boot(state.directory, root_hash, new, uki, kept, tries)
    return SlotPlan(
        bootable=bootable,
        root_hash=root_hash,
        writes=tuple(writes),
        kept=kept,
        doomed=tuple(doomed),
        new=new,
        uki=uki,
        tries=tries,
        boot=boot,
    )


def _is_doomed(slot: Slot | None, overwritten: set[int]) -> bool:
    return slot is None or any(part.number in overwritten for part in slot.partitions)


def _object(repository: Repository, digest: Any) -> Path:
    path = repository.object_path(digest)
    if not path.is_file():
        raise StoreError(f"object {digest} is missing from {repository.path}", hint="run `oci2boot fsck`")
    return path


def _plan_boot(
    directory: BootDirectory,
    root_hash: RootHash,
    new: dict[str, Source],
    uki: str,
    kept: BootEntry | None,
    tries: int | None,
) -> BootPlan:
    """Plan the new entry; where it is there already, with another record, only that is written."""
    wanted = sha256_of(new[uki])
    for entry in directory.entries:
        if root_hash in entry.root_hashes and entry.record and sha256_of(directory.path / entry.path) == wanted:
            plan = plan_default(directory, entry.id, tries=tries)
            content = new[record_path(uki)]
            if sha256_of(directory.path / entry.record) == sha256_of(content):
                return plan
            write = Write(entry.record, content, source_size(content), sha256_of(content))
            return replace(plan, steps=(write, *plan.steps))
    keep = frozenset([kept.id] if kept else [])
    return plan_boot(directory, new, first=uki, keep=keep, tries=tries)


def apply_slot(plan: SlotPlan, machine: Machine, disk: SlotDisk, report: Report) -> None:
    """Do it. Raises `DigestError` where an object is damaged, or the medium does not give back what was written."""
    for problem in plan.boot.problems:
        report(Warned(problem))
    if plan.writes:
        _retire(plan, machine, report)
        total = sum(write.image.used for write in plan.writes)
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            report(Step("partitions", done, total))

        disk.fill(plan.writes, _guid(plan), progress)
        report(Step("partitions", total, total, finished=True, note="written, synced and read back"))
    with machine.state() as state:
        if not plan.writes and all(one.id != str(plan.root_hash) for one in state.deployments):
            raise TargetError("the slot is gone", hint="the disk was changed meanwhile; try again")
        machine.change_boot(_plan_boot(state.directory, plan.root_hash, plan.new, plan.uki, plan.kept, plan.tries))


def _guid(plan: SlotPlan) -> Any:
    seed = hashlib.sha256(plan.root_hash.raw).digest()
    return lambda purpose: derive_uuid(seed, purpose)


def _retire(plan: SlotPlan, machine: Machine, report: Report) -> None:
    """Let what is kept boot, and take from the menu what will not be there any more."""
    for entry in plan.doomed:
        with machine.state() as state:
            first = state.directory.default
            if plan.kept and first and first.id == entry.id:
                machine.change_boot(plan_default(state.directory, plan.kept.id))
        with machine.state() as state:
            if state.directory.find(entry.id) and plan.kept:
                machine.change_boot(plan_remove(state.directory, entry.id, keep=frozenset([plan.kept.id])))
                report(Told(f"{entry.path} makes room, and is removed"))
