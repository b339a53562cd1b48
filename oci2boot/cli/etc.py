"""`oci2boot etc-diff` and `oci2boot finalize`: what a machine changed in /etc, kept by an upgrade."""

from typing import Annotated

import typer
from rich.markup import escape

from oci2boot.cli import output
from oci2boot.cli.day2 import DryRun, Etc, SysrootDir
from oci2boot.cli.options import AsJson, Quiet
from oci2boot.sysroot.etc import EtcPolicy
from oci2boot.sysroot.machine import open_sysroot
from oci2boot.workflows.machine.etc import changed_etc
from oci2boot.workflows.machine.finalize import check_finalized
from oci2boot.workflows.machine.finalize import finalize as run_finalize

_OUTCOMES = {
    "merged": "its /etc has this machine's latest changes",
    "unchanged": "its /etc has them already",
    "edited": "its /etc was changed after the upgrade, and is left as it is",
    "stopped": "its /etc is left as it was at the upgrade",
}


def register(app: typer.Typer) -> None:
    app.command(name="etc-diff")(etc_diff)
    app.command()(finalize)


def etc_diff(
    sysroot: SysrootDir = None,
    deployment: Annotated[
        str | None,
        typer.Option("--deployment", help="start of its digest; by default the one that is booted", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs in /etc from what the image has there."""
    found = changed_etc(sysroot, deployment)
    if as_json:
        output.print_json(found.to_json())
        return
    for note in found.notes:
        output.err.print(f"[yellow]warning:[/] {escape(note)}")
    if found.changes:
        output.print_table(("CHANGE", "PATH"), [(change.change, change.path) for change in found.changes])
    else:
        output.out.print("/etc is the image's")


def finalize(
    etc: Etc = None, dry_run: DryRun = False, sysroot: SysrootDir = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Take what changed in /etc since the upgrade into the deployment that boots next.

    oci2boot-finalize.service does it at every shutdown. --etc replaces the policy that was given to the upgrade.
    """
    policy = EtcPolicy.parse(tuple(etc)) if etc else None
    with output.reporting(quiet=quiet) as report:
        found = run_finalize(open_sysroot(sysroot), report, policy, dry_run=dry_run)
    if as_json:
        output.print_json({"deployments": [one.to_json() for one in found], "written": not dry_run})
    else:
        for one in found:
            if one.etc and one.outcome == "merged":
                output.print_etc(one.etc.to_json()["rows"])
            output.out.print(f"{one.deployment.hex[:12]}: {_OUTCOMES[one.outcome]}")
        if not found:
            output.out.print("no deployment waits for its first boot")
    check_finalized(found)
