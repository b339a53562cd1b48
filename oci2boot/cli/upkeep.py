"""Commands that look after a store, and after the machine that it belongs to: fsck, gc, reset."""

import sys
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer
from rich.markup import escape

from oci2boot.cli.options import DryRun, JustJson, Mounted, MountedRoot, Shown
from oci2boot.cli.output import out, print_table, size
from oci2boot.errors import Error
from oci2boot.workflows.images import Checked, GarbagePlan, check_store
from oci2boot.workflows.machine.collect import collect_garbage
from oci2boot.workflows.machine.place import machine_of, store_of
from oci2boot.workflows.machine.repair import repair as repair_store
from oci2boot.workflows.machine.repair import repair_machine
from oci2boot.workflows.machine.reset import Reset
from oci2boot.workflows.machine.reset import reset as run_reset
from oci2boot.workflows.machine.transition import Removed, end_transition
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import BootOptions, ChosenRepo


def fsck(
    *,
    repair: Annotated[bool, Option("--repair", "fetch what is broken again, from where the images came from")] = False,
    repo: ChosenRepo = None,
    place: MountedRoot,
    output: Shown,
) -> None:
    """Check every object, stream, image and reference of the store."""
    store = store_of(repo, place.sysroot)
    with replace(output, quiet=output.quiet or output.as_json).reporting() as report:
        if not repair:
            checked = check_store(store, report)
        elif (machine := machine_of(store)) is not None:
            checked = repair_machine(machine, BootOptions(), report)
        else:
            checked = repair_store(store, BootOptions(), report)
    output.show(checked, _show_checked)
    if checked.problems:
        raise typer.Exit(1)


def gc(
    *,
    transition: Annotated[
        bool,
        Option("--transition", "remove the system that was on this machine before its first image"),
    ] = False,
    yes: Annotated[bool, Option("--yes", "do not ask before the old system is removed")] = False,
    dry_run: DryRun = False,
    repo: ChosenRepo = None,
    place: Mounted,
    output: JustJson,
) -> None:
    """Remove what no image needs; on a machine, what no boot entry, deployment or image needs."""
    store = store_of(repo, place.sysroot)
    if transition:
        machine = machine_of(store, place.esp)
        found = end_transition(machine, dry_run=True)
        if not (dry_run or yes):
            _confirm_removal(found, as_json=output.as_json)
        if not dry_run:
            found = end_transition(machine, dry_run=False)
        output.show(found, _show_removed, written=found.done)
        return
    plan = collect_garbage(store, dry_run=dry_run, sysroot=machine_of(store, place.esp), esp=place.esp)
    output.show(plan, partial(_show_garbage, dry_run=dry_run))


def _confirm_removal(found: Removed, *, as_json: bool) -> None:
    if as_json or not (sys.stdin.isatty() and out.is_terminal):
        raise Error(
            f"{found.before.title} would be removed, and nobody is here to ask", hint="--yes says that it may be"
        )
    _show_removed(found)
    if typer.prompt(f"{found.before.title} and all its files will be lost. Type remove to go on") != "remove":
        raise Error("nothing was changed")


def _show_removed(found: Removed) -> None:
    print_table(("OF THE OLD SYSTEM", "SIZE"), [(f"/{name}", size(count)) for name, count in found.names])
    for entry in found.before.entries:
        out.print(f"boot entry {entry}", markup=False)
    for kept in found.before.kept:
        out.print(f"/{kept} stays: the new system uses it", markup=False)
    out.print(f"{'freed' if found.done else 'would free'} {size(found.freed)}: {escape(found.before.title)}")


def reset(
    *,
    full: Annotated[bool, Option("--full", "first read every object, and fetch again what is broken")] = False,
    yes: Annotated[bool, Option("--yes", "do not ask first")] = False,
    dry_run: DryRun = False,
    place: Mounted,
    output: Shown,
) -> None:
    """Factory reset: delete everything in this machine's /etc and /var; its images stay. Restart it afterwards."""
    machine = place.open()
    if not (dry_run or yes):
        if output.as_json or not (sys.stdin.isatty() and out.is_terminal):
            raise Error(
                "all state of the machine would be lost, and nobody is here to ask", hint="--yes says it may be"
            )
        if typer.prompt("All of /etc and /var of this machine will be lost. Type reset to go on") != "reset":
            raise Error("nothing was changed")
    with output.reporting() as report:
        made = run_reset(machine, BootOptions(), report, full=full, dry_run=dry_run)
    output.show(made, partial(_show_reset, dry_run=dry_run), written=not dry_run)


def _show_reset(made: Reset, *, dry_run: bool) -> None:
    out.print(f"{len(made.deployments)} deployments {'would get' if dry_run else 'have'} a new state")


def _show_checked(checked: Checked) -> None:
    for problem in checked.problems:
        out.print(f"[red]{escape(problem)}[/]")
    verdict = f"[bold red]{len(checked.problems)} problems[/]" if checked.problems else "[bold green]ok[/]"
    out.print(f"{checked.objects} objects, {checked.streams} streams, {checked.images} images: {verdict}")


def _show_garbage(plan: GarbagePlan, *, dry_run: bool) -> None:
    verb = "would free" if dry_run else "freed"
    out.print(
        f"{verb} {size(plan.freed)}: {len(plan.objects)} objects, {len(plan.links)} names, "
        f"{len(plan.leftovers)} leftovers; {plan.kept} objects stay"
    )
