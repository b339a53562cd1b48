"""A machine whose root file system dm-verity guards: its deployments are slots, sets of partitions on its disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oci2boot.errors import StoreError
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootEntry
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.system.files import plain_errors
from oci2boot.target.slots import EMPTY
from oci2boot.target.types import ROOT_TYPES
from oci2boot.workflows.machine.model import Deployment, MachineState
from oci2boot.workflows.machine.slot_deploy import SlotPlan, apply_slot, plan_slot
from oci2boot.workflows.machine.slot_state import Slots, SlotState
from oci2boot.workflows.progress import Report


@dataclass(frozen=True, slots=True)
class SlotMachine:
    slots: Slots

    @property
    def store(self) -> Path:
        return self.slots.place.repository

    @contextmanager
    def state(self) -> Iterator[MachineState]:
        with self.slots.state() as found:
            place = found.place
            made = {
                entry.path: _deployment(found, entry) for entry in found.directory.entries if entry.path in found.slots
            }
            first, current = found.directory.default, found.current
            following = made.get(first.path) if first else None
            yield MachineState(
                mode="verity",
                live=place.live,
                esp=place.esp,
                directory=found.directory,
                deployments=tuple(made.values()),
                booted=str(place.booted) if place.booted else None,
                next=following if following and following.own else None,
                current=made[current.path] if current else None,
                problems=found.problems,
                facts={"disk": str(place.disk), "free": _free(found)},
            )

    def plan(self, repository: Repository, bootable: Bootable) -> SlotPlan:
        with self.slots.state() as state:
            return plan_slot(state, repository, bootable)

    def deploy(self, repository: Repository, bootable: Bootable, report: Report) -> SlotPlan:
        plan = self.plan(repository, bootable)
        apply_slot(plan, self.slots, report)
        return plan

    def change_boot(self, plan: BootPlan) -> None:
        self.slots.apply(plan)

    def tidy(self) -> list[str]:
        place = self.slots.place
        if place.live and place.store is None:
            # It was needed for this one image; one that is named keeps layers for the next.
            with plain_errors(StoreError, f"remove {self.store}"):
                shutil.rmtree(self.store)
        return []


def _deployment(state: SlotState, entry: BootEntry) -> Deployment:
    slot, image = state.slots[entry.path], state.images.get(entry.path)
    return Deployment(
        id=str(slot.root_hash),
        entries=(entry,),
        record=image.to_json() if image else None,
        title=entry.title,
        rejected=entry.tries_left == 0,
        own=entry.own,
        facts={
            "root_hash": str(slot.root_hash),
            "partitions": [
                {"number": part.number, "label": part.name, "guid": part.guid, "size": part.size}
                for part in slot.partitions
            ],
            "signed": slot.signature is not None,
        },
    )


def _free(state: SlotState) -> list[dict[str, Any]]:
    """Return the root partitions that no slot is on."""
    taken = {part.number for slot in state.slots.values() for part in slot.partitions}
    return [
        {"partition": part.number, "size": part.size, "empty": part.name == EMPTY}
        for part in state.gpt.partitions
        if part.type in ROOT_TYPES and part.number not in taken
    ]
