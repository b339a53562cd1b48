"""Commands that look after a store, and after the machine that it belongs to: fsck, gc, reset."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.day2 import DryRun, EspDir, SysrootDir
from oci2boot.cli.options import AsJson, Quiet, Repo, repo_path
from oci2boot.errors import Error
from oci2boot.sysroot.machine import LIVE, Sysroot, open_sysroot
from oci2boot.workflows.images import check_store
from oci2boot.workflows.machine.collect import collect_garbage
from oci2boot.workflows.machine.repair import repair as repair_store
from oci2boot.workflows.machine.repair import repair_machine
from oci2boot.workflows.machine.reset import reset as run_reset
from oci2boot.workflows.requests import BootOptions


def register(app: typer.Typer) -> None:
    for command in (fsck, gc, reset):
        app.command()(command)


def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="fetch what is broken again, from where the images came from")
    ] = False,
    repo: Repo = None,
    sysroot: SysrootDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every object, stream, image and reference of the store."""
    store = _store(repo, sysroot)
    with output.reporting(quiet=quiet or as_json) as report:
        if not repair:
            checked = check_store(store, report)
        elif (place := _machine(store, None)) is not None:
            checked = repair_machine(place, BootOptions(), report)
        else:
            checked = repair_store(store, BootOptions(), report)
    if as_json:
        output.print_json(checked.to_json())
    else:
        output.show_checked(checked)
    if checked.problems:
        raise typer.Exit(1)


def gc(
    dry_run: DryRun = False,
    repo: Repo = None,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove what no image keeps; on a machine, what no boot entry, deployment or image needs."""
    store = _store(repo, sysroot)
    plan = collect_garbage(store, dry_run=dry_run, sysroot=_machine(store, esp), esp=esp)
    if as_json:
        output.print_json(plan.to_json())
    else:
        output.show_garbage(plan, dry_run=dry_run)


def reset(
    full: Annotated[
        bool, typer.Option("--full", help="first read every object, and fetch again what is broken")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    dry_run: DryRun = False,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Factory reset: drop all that this machine has in /etc and /var; its images stay. Restart it afterwards."""
    place = open_sysroot(sysroot, esp)
    if not (dry_run or yes):
        if as_json or not (sys.stdin.isatty() and output.out.is_terminal):
            raise Error(
                "all state of the machine would be lost, and nobody is here to ask", hint="--yes says it may be"
            )
        if typer.prompt("All of /etc and /var of this machine will be lost. Type reset to go on") != "reset":
            raise Error("nothing was changed")
    with output.reporting(quiet=quiet) as report:
        made = run_reset(place, BootOptions(), report, full=full, dry_run=dry_run)
    if as_json:
        output.print_json(made.to_json() | {"written": not dry_run})
    else:
        output.out.print(f"{len(made.deployments)} deployments {'would get' if dry_run else 'have'} a new state")


def _machine(store: Path, esp: Path | None) -> Sysroot | None:
    """Return whose store it is: a machine's is never taken for one of its own, or what boots would not be seen."""
    if not (store.parent / "state/deploy").is_dir():
        return None
    return open_sysroot(None if store.parent == LIVE else store.parent, esp)


def _store(repo: Path | None, sysroot: Path | None) -> Path:
    """Return the store that is named, or the one of the machine that is; root's own is that of the running machine."""
    if sysroot is not None:
        return open_sysroot(sysroot).repository
    if repo is None and os.geteuid() == 0 and (LIVE / "composefs/meta.json").is_file():
        return LIVE / "composefs"
    return repo_path(repo)
