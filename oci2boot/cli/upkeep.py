"""Commands that look after a store, and after the machine that it belongs to: fsck, gc."""

import os
from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.day2 import DryRun, EspDir, SysrootDir
from oci2boot.cli.options import AsJson, Quiet, Repo, repo_path
from oci2boot.sysroot.machine import LIVE, Sysroot, open_sysroot
from oci2boot.workflows.collect import collect_garbage
from oci2boot.workflows.manage import check_store
from oci2boot.workflows.repair import repair as repair_store
from oci2boot.workflows.repair import repair_machine
from oci2boot.workflows.requests import BootOptions


def register(app: typer.Typer) -> None:
    for command in (fsck, gc):
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
