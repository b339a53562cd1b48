"""A machine whose root is under dm-verity: what its two slots hold, and what goes into the one that is not booted."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from oci2boot.cli import output
from oci2boot.cli.options import repo_path
from oci2boot.errors import Error
from oci2boot.oci.reference import Reference
from oci2boot.workflows.machine import slot_upgrade
from oci2boot.workflows.machine.slot_state import SlotPlace, find_place, open_slots
from oci2boot.workflows.machine.slot_upgrade import SlotRequest, SlotUpgraded
from oci2boot.workflows.machine.upgrade import Mode
from oci2boot.workflows.requests import BootOptions

DiskPath = Annotated[
    Path | None,
    typer.Option(
        "--disk",
        metavar="DISK",
        help="a disk or disk image with two slots under dm-verity, that nothing runs from",
        show_default=False,
    ),
]
STORE: Final = Path("/var/lib/oci2boot/composefs")
"""Of a running machine, as long as a new image is made."""


def place_of(disk: Path | None, sysroot: Path | None, esp: Path | None, **others: object) -> SlotPlace | None:
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


def mode_of(place: SlotPlace, *, check: bool, download: bool, apply: bool) -> Mode:
    if check + download + apply > 1:
        raise Error("--check, --download-only and --apply exclude each other")
    if apply and not place.live:
        raise Error("--apply restarts this machine, and --disk names another one")
    return "check" if check else "download" if download else "deploy"


def show_status(place: SlotPlace, *, as_json: bool) -> None:
    with open_slots(place, writing=False) as machine, machine.state() as state:
        found = state.to_json()
    if as_json:
        output.print_json(found)
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
    output.print_table(("STATE", "ROOT HASH", "SYSTEM", "SOURCE", "PARTITIONS", "BOOTS"), rows)
    for one in found["free"]:
        what = "empty" if one["empty"] else "free"
        output.out.print(f"partition {one['partition']} is {what}, {output.size(one['size'])}")
    _warn(found["problems"])


def upgrade(
    place: SlotPlace, mode: Mode, given: BootOptions, repo: Path | None, *, dry_run: bool, **shown: bool
) -> None:
    request = SlotRequest(place, _store(place, repo), mode, given, dry_run)
    with _reporting(shown) as report:
        done = slot_upgrade.upgrade(request, report)
    _finish(done, request, repo, shown)


def switch(
    place: SlotPlace,
    mode: Mode,
    source: Reference,
    name: str | None,
    given: BootOptions,
    repo: Path | None,
    *,
    dry_run: bool,
    **shown: bool,
) -> None:
    request = SlotRequest(place, _store(place, repo), mode, given, dry_run)
    with _reporting(shown) as report:
        done = slot_upgrade.switch(request, source, name, report)
    _finish(done, request, repo, shown)


def rollback(place: SlotPlace, wanted: str | None, *, dry_run: bool, as_json: bool) -> None:
    root_hash, plan = slot_upgrade.rollback(place, wanted, dry_run=dry_run)
    if as_json:
        output.print_json({"root_hash": root_hash, "boot": plan.to_json(), "written": not dry_run})
        return
    _warn(plan.problems)
    output.out.print(f"{root_hash} {'would boot' if dry_run else 'boots'} next")


def _store(place: SlotPlace, repo: Path | None) -> Path:
    return repo or (STORE if place.live else repo_path(None, writing=True))


def _reporting(shown: Mapping[str, bool]) -> Any:
    return output.reporting(progress_json=shown["progress_json"], quiet=shown["quiet"])


def _finish(done: SlotUpgraded, request: SlotRequest, repo: Path | None, shown: Mapping[str, bool]) -> None:
    if request.place.live and repo is None and done.outcome == "deployed":
        # It was needed for this one image; --repo keeps layers for the next.
        shutil.rmtree(request.repo)
    if shown["as_json"]:
        output.print_json(done.to_json())
    else:
        _show(done)
    if shown["apply"]:
        slot_upgrade.reboot_into(done)


def _show(done: SlotUpgraded) -> None:
    if done.plan:
        output.print_facts(
            [
                ("image", f"{done.plan.bootable.name} ({done.plan.bootable.title})"),
                ("boots", str(done.plan.bootable.cmdline)),
                ("partitions", ", ".join(str(write.partition.number) for write in done.plan.writes) or "as they are"),
                ("falls back to", done.plan.kept.id if done.plan.kept else "nothing"),
                ("removed entries", ", ".join(entry.id for entry in done.plan.doomed) or "none"),
            ]
        )
    fetch = f"{done.news.layers} layers, {output.size(done.news.bytes)}" if done.news else ""
    text = {
        "up to date": "nothing is newer than what boots next",
        "rejected": "the newer image is here, and was rolled back or did not boot: `oci2boot rollback ID` boots it",
        "available": f"there is a newer image: {fetch} to fetch",
        "downloaded": "downloaded; `oci2boot upgrade` deploys it",
        "deployed": "deployed; the next boot takes it",
    }
    output.out.print(text[done.outcome], soft_wrap=True)


def _counted(entry: Mapping[str, Any]) -> str:
    if entry["bad"]:
        return "failed"
    if entry["tries_left"] == 0:
        return "put back"
    return "" if entry["tries_left"] is None else f"{entry['tries_left']} tries left"


def _warn(problems: Any) -> None:
    for problem in problems:
        output.err.print(f"[yellow]warning:[/] {escape(problem)}")
