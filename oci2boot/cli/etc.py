"""`oci2boot etc-diff` and `oci2boot finalize`: what a machine changed in /etc, kept by an upgrade."""

from typing import Annotated

from rich.markup import escape

from oci2boot.cli.options import DryRun, JustJson, MountedRoot, Shown
from oci2boot.cli.output import err, out, print_etc, print_json, print_table
from oci2boot.workflows.machine.etc import EtcDiff, Policy, changed_etc
from oci2boot.workflows.machine.finalize import check_finalized
from oci2boot.workflows.machine.finalize import finalize as run_finalize
from oci2boot.workflows.options import Option

_OUTCOMES = {
    "merged": "its /etc has this machine's latest changes",
    "unchanged": "its /etc has them already",
    "edited": "its /etc was changed after the upgrade, and is left as it is",
    "stopped": "its /etc is left as it was at the upgrade",
}


def etc_diff(
    *,
    place: MountedRoot,
    deployment: Annotated[
        str | None, Option("--deployment", "beginning of its digest; by default the one that is booted")
    ] = None,
    output: JustJson,
) -> None:
    """Show how /etc differs from the image's /etc."""
    output.show(changed_etc(place.sysroot, deployment), _show_diff)


def _show_diff(found: EtcDiff) -> None:
    for note in found.notes:
        err.print(f"[yellow]warning:[/] {escape(note)}")
    if found.changes:
        print_table(("CHANGE", "PATH"), [(change.change, change.path) for change in found.changes])
    else:
        out.print("/etc is the image's")


def finalize(*, etc: Policy = None, dry_run: DryRun = False, place: MountedRoot, output: Shown) -> None:
    """Take what changed in /etc since the upgrade into the deployment that boots next.

    oci2boot-finalize.service does it at every shutdown. --etc replaces the policy that was given to the upgrade.
    """
    with output.reporting() as report:
        found = run_finalize(place.open(), report, etc, dry_run=dry_run)
    if output.as_json:
        print_json({"deployments": [one.to_json() for one in found], "written": not dry_run})
    else:
        for one in found:
            if one.etc and one.outcome == "merged":
                print_etc(one.etc.to_json()["rows"])
            out.print(f"{one.deployment.hex[:12]}: {_OUTCOMES[one.outcome]}")
        if not found:
            out.print("no deployment waits for its first boot")
    check_finalized(found)
