"""Another slot for a machine: the next version of its image, another image, or the one before."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from oci2boot.errors import TargetError
from oci2boot.oci.reference import Reference
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootEntry
from oci2boot.sysroot.bootdir_plan import plan_default
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.system.run import run
from oci2boot.workflows.machine.slot_deploy import SlotPlan, apply_slot, plan_slot
from oci2boot.workflows.machine.slot_state import SlotPlace, Slots, SlotState, open_slots
from oci2boot.workflows.machine.upgrade import Mode, News, find_news
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Report
from oci2boot.workflows.requests import BootOptions

ID_MIN = 4
"""Digits of a root hash that name a slot."""


@dataclass(frozen=True, slots=True)
class SlotRequest:
    place: SlotPlace
    repo: Path
    """Where the new image is kept while it is made."""
    mode: Mode = "deploy"
    given: BootOptions = field(default_factory=BootOptions)
    """Keys and certificates, which no record holds."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class SlotUpgraded:
    outcome: Literal["up to date", "rejected", "available", "downloaded", "deployed"]
    news: News | None = None
    bootable: Bootable | None = None
    plan: SlotPlan | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "news": self.news.to_json() if self.news else None,
            "image": self.bootable.to_json() if self.bootable else None,
            "plan": self.plan.to_json() if self.plan else None,
        }


def rollback(place: SlotPlace, wanted: str | None, *, dry_run: bool = False) -> tuple[str, BootPlan]:
    """Let the other slot boot next, or the one whose root hash begins so; return its root hash."""
    with open_slots(place, writing=not dry_run) as machine:
        with machine.state() as state:
            entry = _other(state) if wanted is None else _find(state, wanted)
            root_hash, plan = str(state.slots[entry.path].root_hash), plan_default(state.directory, entry.id)
        if not dry_run:
            machine.apply(plan)
    return root_hash, plan


def _own(state: SlotState) -> list[BootEntry]:
    return [entry for entry in state.directory.entries if entry.own and entry.path in state.slots]


def _other(state: SlotState) -> BootEntry:
    found = next((entry for entry in _own(state) if entry != state.next and not entry.bad), None)
    if found is None:
        raise TargetError("there is no other slot to go back to", hint="`oci2boot status` shows what there is")
    return found


def _find(state: SlotState, wanted: str) -> BootEntry:
    found = [entry for entry in _own(state) if str(state.slots[entry.path].root_hash).startswith(wanted)]
    if len(wanted) < ID_MIN or len({state.slots[entry.path].root_hash for entry in found}) != 1:
        raise TargetError(
            f"{'several slots begin' if len(found) > 1 else 'no slot begins'} with {wanted[:128]!r}",
            hint="`oci2boot status` lists them",
        )
    return found[0]


def upgrade(request: SlotRequest, report: Report) -> SlotUpgraded:
    """Bring the machine to what the reference of its image leads to now."""
    looking = request.mode == "check" or request.dry_run
    with open_slots(request.place, writing=not looking) as machine:
        with machine.state() as state:
            tracked = state.tracked
            with _store(request.repo) as repository:
                news = find_news(tracked, request.given, repository)
            if not news.changed:
                return SlotUpgraded("up to date", news, tracked)
            if _rejected(state, news):
                return SlotUpgraded("rejected", news, tracked)
        if looking:
            return SlotUpgraded("available", news, tracked)
        with TemporaryDirectory(prefix="oci2boot-") as scratch:
            again = request_again(tracked, request.repo, Path(scratch), request.given)
            return _deploy(request, machine, convert(again, report), news, report)


@contextmanager
def _store(path: Path) -> Iterator[Repository]:
    """Give the store, or an empty one that is gone afterwards: who only looks writes nothing."""
    with ExitStack() as stack:
        if not (path / "meta.json").exists():
            path = Path(stack.enter_context(TemporaryDirectory(prefix="oci2boot-")), "composefs")
        yield stack.enter_context(Repository.ensure(path, None))


def switch(request: SlotRequest, source: Reference, name: str | None, report: Report) -> SlotUpgraded:
    """Bring the machine to another image, made as the one that it has; from then on it is upgraded from there."""
    if request.dry_run:
        raise TargetError("a switch cannot be planned before the image is here", hint="--download-only fetches it")
    with open_slots(request.place, writing=True) as machine:
        with machine.state() as state:
            tracked = state.tracked
        with TemporaryDirectory(prefix="oci2boot-") as scratch:
            again = request_again(tracked, request.repo, Path(scratch), request.given)
            wanted = replace(again, source=source, name=name)
            return _deploy(request, machine, convert(wanted, report), None, report)


def reboot_into(done: SlotUpgraded) -> None:
    """Restart this machine if something new was deployed."""
    if done.outcome == "deployed":
        run(["systemctl", "reboot"], package="systemd")


def _deploy(
    request: SlotRequest, machine: Slots, bootable: Bootable, news: News | None, report: Report
) -> SlotUpgraded:
    if request.mode == "download":
        return SlotUpgraded("downloaded", news, bootable)
    with Repository.open(request.repo) as repository:
        with machine.state() as state:
            plan = plan_slot(state, repository, bootable)
        apply_slot(plan, machine, report)
    return SlotUpgraded("deployed", news, bootable, plan)


def _rejected(state: SlotState, news: News) -> bool:
    """Tell whether the new image is here and was put back: who upgrades unattended would boot it for ever."""
    return news.manifest is not None and any(
        entry.tries_left == 0 and str(state.images[entry.path].manifest) == news.manifest
        for entry in _own(state)
        if entry.path in state.images
    )
