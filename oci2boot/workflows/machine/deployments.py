"""A machine whose files fs-verity guards: its deployments are directories on its physical root."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootEntry
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.sysroot.deployments import DeployedState
from oci2boot.sysroot.machine import Sysroot
from oci2boot.sysroot.state import SysrootState, read_state
from oci2boot.workflows.machine.deploy import DeployOptions, SysrootPlan, apply_deployment, plan_deployment
from oci2boot.workflows.machine.keep import retire
from oci2boot.workflows.machine.model import Deployment, MachineState
from oci2boot.workflows.progress import Report


@dataclass(frozen=True, slots=True)
class SysrootMachine:
    sysroot: Sysroot
    options: DeployOptions = field(default_factory=DeployOptions)

    @property
    def store(self) -> Path:
        return self.sysroot.repository

    @contextmanager
    def state(self) -> Iterator[MachineState]:
        found = read_state(self.sysroot)
        with Repository.open(self.store) as repository:
            secure = repository.secure
            made = {
                one.digest: _deployment(found, one, whole=repository.has_object(one.digest))
                for one in found.deployments
            }
        lost = found.booted if found.booted not in made else None
        yield MachineState(
            mode="composefs",
            live=self.sysroot.live,
            esp=found.directory.path,
            directory=found.directory,
            deployments=tuple(made.values()),
            booted=found.booted.hex if found.booted else None,
            next=made[found.next.digest] if found.next else None,
            current=made[found.current.digest] if found.current else None,
            problems=(*found.directory.problems, *([f"what runs, {lost}, has no state here"] if lost else [])),
            facts={"sysroot": str(self.sysroot.root), "fsverity": secure},
        )

    def plan(self, repository: Repository, bootable: Bootable) -> SysrootPlan:
        return self._plan(read_state(self.sysroot), repository, bootable)

    def deploy(self, repository: Repository, bootable: Bootable, report: Report) -> SysrootPlan | None:
        state = read_state(self.sysroot)
        if state.next and state.next.digest == bootable.composefs.image and _same_boot_files(state.next, bootable):
            return None
        plan = self._plan(state, repository, bootable)
        apply_deployment(plan, state, repository, repository, report)
        return plan

    def _plan(self, state: SysrootState, repository: Repository, bootable: Bootable) -> SysrootPlan:
        # What was allowed once is in the image's record, and in its kernel argument.
        allowed = self.options.allow_missing_verity or bootable.options.get("allow_missing_verity") is True
        options = replace(self.options, allow_missing_verity=allowed)
        return plan_deployment(state, repository, repository, bootable, options)

    def change_boot(self, plan: BootPlan) -> None:
        apply_boot(plan, self.sysroot.boot_directory())

    def tidy(self) -> list[str]:
        keep = self.options.keep
        gone = retire(self.sysroot, keep) if keep else []
        return [f"{one.digest} is older than the {keep} that are kept, and deleted" for one in gone]


def _deployment(state: SysrootState, one: DeployedState, *, whole: bool) -> Deployment:
    entries = tuple(state.entries_of(one.digest))
    # One that was deployed before what boots next is not rejected: its publisher went back to it. Nor is one without a
    # boot entry: the command that made it was stopped.
    since = state.next.deployed or 0 if state.next else 0
    return Deployment(
        id=one.digest.hex,
        entries=entries,
        record=one.record,
        title=(one.record or {}).get("title"),
        deployed=one.deployed,
        tool=one.tool,
        pinned=one.pinned,
        rejected=bool(entries) and (one.deployed or 0) > since,
        whole=whole,
        facts={"digest": one.digest.hex, "verity": _verity(entries)},
    )


def _verity(entries: tuple[BootEntry, ...]) -> str | None:
    """Return whether the entries insist on fs-verity; None without an entry."""
    arguments = [argument for entry in entries for argument in entry.arguments]
    if not arguments:
        return None
    return "optional" if any(argument.insecure for argument in arguments) else "required"


def _same_boot_files(deployed: DeployedState, bootable: Bootable) -> bool:
    """Compare contents: a name may have been taken."""
    kept = (deployed.record or {}).get("esp", {})
    return sorted(kept.values()) == sorted(map(str, bootable.esp.values()))
