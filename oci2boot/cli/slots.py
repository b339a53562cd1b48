"""A machine whose root is under dm-verity: what its two slots hold, and what goes into the one that is not booted."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from oci2boot.cli.output import Output, err, out, print_facts, print_json, print_table, size
from oci2boot.errors import Error
from oci2boot.oci.reference import Reference
from oci2boot.workflows.images import writable_repo
from oci2boot.workflows.machine import slot_upgrade
from oci2boot.workflows.machine.slot_upgrade import SlotRequest, SlotUpgraded
from oci2boot.workflows.machine.slots import Place, find_place, open_machine
from oci2boot.workflows.machine.upgrade import Mode
from oci2boot.workflows.requests import BootOptions

STORE: Final = Path("/var/lib/oci2boot/composefs")
"""Of a running machine, as long as a new image is made."""


def place_of(disk: Path | None, sysroot: Path | None, esp: Path | None, **others: object) -> Place | None:
    """Return the disk with slots that is meant, None for a composefs machine; `others` are options of that alone."""
    if sysroot is not None:
        if disk is not None:
            raise Error("--disk and --sysroot exclude each other", hint="--disk is for slots under dm-verity")
        return None
    place = find_place(disk, esp)
    if place:
        for name, value in others.items():
            if value not in (None, False, (), [], "auto"):
                raise Error(
                    f"--{name.replace('_', '-')} is not for a root file system under dm-verity",
                    hint="leave it out: the new image is made as the one before",
                )
    return place


def mode_of(place: Place, *, check: bool, download: bool, apply: bool) -> Mode:
    if check + download + apply > 1:
        raise Error("--check, --download-only and --apply exclude each other")
    if apply and not place.live:
        raise Error("--apply restarts this machine, and --disk names another one")
    return "check" if check else "download" if download else "deploy"


def show_status(place: Place, *, as_json: bool) -> None:
    with open_machine(place, writing=False) as machine, machine.state() as state:
        found = state.to_json()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            ", ".join(one["states"]),
            one["root_hash"][:12],
            one["title"] or "unknown",
            one["source"] or "",
            ", ".join(str(part["number"]) for part in one["partitions"]),
            _counted(one["entry"]),
        )
        for one in found["slots"]
    ]
    print_table(("STATE", "ROOT HASH", "SYSTEM", "SOURCE", "PARTITIONS", "BOOTS"), rows)
    for one in found["free"]:
        what = "empty" if one["empty"] else "free"
        out.print(f"partition {one['partition']} is {what}, {size(one['size'])}")
    _warn(found["problems"])


def upgrade(
    place: Place, mode: Mode, given: BootOptions, repo: Path | None, output: Output, *, dry_run: bool, apply: bool
) -> None:
    request = SlotRequest(place, _store(place, repo), mode, given, dry_run)
    with output.reporting() as report:
        done = slot_upgrade.upgrade(request, report)
    _finish(done, request, repo, output, apply=apply)


def switch(
    place: Place,
    mode: Mode,
    source: Reference,
    name: str | None,
    given: BootOptions,
    repo: Path | None,
    output: Output,
    *,
    dry_run: bool,
    apply: bool,
) -> None:
    request = SlotRequest(place, _store(place, repo), mode, given, dry_run)
    with output.reporting() as report:
        done = slot_upgrade.switch(request, source, name, report)
    _finish(done, request, repo, output, apply=apply)


def rollback(place: Place, wanted: str | None, *, dry_run: bool, as_json: bool) -> None:
    root_hash, plan = slot_upgrade.rollback(place, wanted, dry_run=dry_run)
    if as_json:
        print_json({"root_hash": root_hash, "boot": plan.to_json(), "written": not dry_run})
        return
    _warn(plan.problems)
    out.print(f"{root_hash} {'would boot' if dry_run else 'boots'} next")


def _store(place: Place, repo: Path | None) -> Path:
    return repo or (STORE if place.live else writable_repo())


def _finish(done: SlotUpgraded, request: SlotRequest, repo: Path | None, output: Output, *, apply: bool) -> None:
    if request.place.live and repo is None and done.outcome == "deployed":
        # It was needed for this one image; --repo keeps layers for the next.
        shutil.rmtree(request.repo)
    output.show(done, _show)
    if apply:
        slot_upgrade.reboot_into(done)


def _show(done: SlotUpgraded) -> None:
    if done.plan:
        print_facts(
            [
                ("image", f"{done.plan.bootable.name} ({done.plan.bootable.title})"),
                ("boots", str(done.plan.bootable.cmdline)),
                ("partitions", ", ".join(str(write.partition.number) for write in done.plan.writes) or "as they are"),
                ("falls back to", done.plan.kept.id if done.plan.kept else "nothing"),
                ("removed entries", ", ".join(entry.id for entry in done.plan.doomed) or "none"),
            ]
        )
    fetch = f"{done.news.layers} layers, {size(done.news.bytes)}" if done.news else ""
    text = {
        "up to date": "nothing is newer than what boots next",
        "rejected": "the newer image is here, and was rolled back or did not boot: `oci2boot rollback ID` boots it",
        "available": f"there is a newer image: {fetch} to fetch",
        "downloaded": "downloaded; `oci2boot upgrade` deploys it",
        "deployed": "deployed; the next boot takes it",
    }
    out.print(text[done.outcome], soft_wrap=True)


def _counted(entry: Mapping[str, Any]) -> str:
    if entry["bad"]:
        return "failed"
    if entry["tries_left"] == 0:
        return "put back"
    return "" if entry["tries_left"] is None else f"{entry['tries_left']} tries left"


def _warn(problems: Any) -> None:
    for problem in problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")
