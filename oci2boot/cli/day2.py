"""A machine that lives on: status, upgrade, switch, rollback, pin, delete."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final

from oci2boot.cli.groups import Only, Said
from oci2boot.cli.machine_text import show_status, show_upgraded, warn
from oci2boot.cli.options import Authfile, DryRun, JustJson, Mounted, Registry, SigningOrAnswer
from oci2boot.cli.output import Output, out
from oci2boot.errors import Error
from oci2boot.workflows.machine import keep
from oci2boot.workflows.machine.demands import Allowed
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.place import AskedPlace
from oci2boot.workflows.machine.rollback import RolledBack
from oci2boot.workflows.machine.rollback import rollback as run_rollback
from oci2boot.workflows.machine.status import read_status
from oci2boot.workflows.machine.upgrade import Goal, UpgradeRequest, reboot_into
from oci2boot.workflows.machine.upgrade import switch as run_switch
from oci2boot.workflows.machine.upgrade import upgrade as run_upgrade
from oci2boot.workflows.options import Option, said
from oci2boot.workflows.requests import BootOptions, ChosenRepo, ConvertRequest, Name
from oci2boot.workflows.sources import Source

ON_TOP: Final = (
    *("flow", "kargs", "kernel", "uki", "size_limit", "initrd", "allow_missing_verity"),
    *("db", "loader", "timeout", "secure_boot_enroll", "console"),
)
"""Of what a machine remembers, what `switch` may change."""
Id = Annotated[str, Option("DEPLOYMENT", "beginning of the deployment's digest")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How far a change goes."""

    check: Annotated[bool, Option("--check", "only say whether there is a newer image")] = False
    download: Annotated[bool, Option("--download-only", "only fetch and store it, do not deploy it")] = False
    apply: Annotated[bool, Option("--apply", "reboot into it at once")] = False
    soft: Annotated[
        bool,
        Option(
            "--soft-reboot",
            "with --apply: restart all except the kernel, if it is the same; what the TPM measured stays as it was",
        ),
    ] = False

    def goal(self, asked: AskedPlace, *, live: bool) -> Goal:
        if self.check + self.download + self.apply > 1:
            raise Error("--check, --download-only and --apply exclude each other")
        if self.soft and not self.apply:
            raise Error("--soft-reboot says how, and --apply that it reboots", hint="give both")
        if self.apply and not live:
            raise Error(f"--apply restarts this machine, and {said(asked)[0]} names another one")
        return "check" if self.check else "download" if self.download else "deploy"


def status(*, asked: AskedPlace, output: JustJson) -> None:
    """Show what this machine runs, what it boots next, and what else it keeps."""
    output.show(read_status(asked.find()), show_status)


def upgrade(
    *,
    extent: Extent,
    options: Annotated[DeployOptions, Only("etc", "keep")],
    dry_run: DryRun = False,
    asked: AskedPlace,
    repo: ChosenRepo = None,
    given: Annotated[BootOptions, Only("db")],
    allowed: Allowed,
    signing: SigningOrAnswer,
    fetching: Authfile,
    output: Output,
) -> None:
    """Bring this machine to the newest version of its image; the next boot starts it."""
    place = asked.find(asked.store(repo), others=[*said(options), *(["--soft-reboot"] if extent.soft else [])])
    goal = extent.goal(asked, live=place.live)
    given = replace(given, signing=signing)
    request = UpgradeRequest(place, goal, given, options, dry_run, allowed, authfile=fetching.authfile)
    with output.reporting() as report:
        done = run_upgrade(request, report)
    output.show(done, show_upgraded)
    if extent.apply:
        reboot_into(place, done, soft=extent.soft)


def switch(
    *,
    source: Source,
    name: Name = None,
    extent: Annotated[Extent, Only("download", "apply", "soft")],
    options: Annotated[DeployOptions, Only("etc")],
    dry_run: DryRun = False,
    asked: AskedPlace,
    repo: ChosenRepo = None,
    on_top: Annotated[dict[str, Any], Said(BootOptions, *ON_TOP)],
    allowed: Allowed,
    signing: SigningOrAnswer,
    fetching: Registry,
    output: Output,
) -> None:
    """Bring this machine to another image, and follow that one from then on.

    It is made as the one before was, options that you give on top.
    """
    boot = BootOptions(**on_top, signing=signing)
    apart = replace(BootOptions(), flow=boot.flow, allow_missing_verity=boot.allow_missing_verity)
    others = [*said(options), *said(apart), *(["--soft-reboot"] if extent.soft else [])]
    place = asked.find(asked.store(repo), others=others)
    goal = extent.goal(asked, live=place.live)
    options = replace(options, allow_missing_verity=boot.allow_missing_verity)
    wanted = ConvertRequest(source=source, repo=place.repository, name=name, options=fetching.options(), boot=boot)
    request = UpgradeRequest(place, goal, boot, options, dry_run, allowed, authfile=fetching.authfile)
    with output.reporting() as report:
        done = run_switch(request, wanted, report, on_top.keys())
    output.show(done, show_upgraded)
    if extent.apply:
        reboot_into(place, done, soft=extent.soft)


def rollback(
    *,
    deployment: Annotated[
        str | None, Option("DEPLOYMENT", "beginning of its digest; by default the one before")
    ] = None,
    dry_run: DryRun = False,
    asked: AskedPlace,
    output: JustJson,
) -> None:
    """Make the previous deployment boot next, or the one that you name."""
    done = run_rollback(asked.find(), deployment, dry_run=dry_run)
    output.show(done, partial(_show_rolled_back, dry_run=dry_run), written=not dry_run)


def _show_rolled_back(done: RolledBack, *, dry_run: bool) -> None:
    warn(done.boot.problems)
    out.print(f"{done.chosen.id} {'would boot' if dry_run else 'boots'} next")


def pin(*, deployment: Id, asked: Mounted, output: JustJson) -> None:
    """Keep a deployment, even if its space is needed."""
    _pinned(deployment, asked, output, pinned=True)


def unpin(*, deployment: Id, asked: Mounted, output: JustJson) -> None:
    """Keep a deployment only as long as there is room."""
    _pinned(deployment, asked, output, pinned=False)


def _pinned(deployment: str, asked: AskedPlace, output: Output, *, pinned: bool) -> None:
    chosen = keep.pin(asked.open(), deployment, pinned=pinned)
    output.say(
        {"digest": chosen.digest.hex, "pinned": pinned}, f"{chosen.digest} is {'pinned' if pinned else 'not pinned'}"
    )


def delete(*, deployment: Id, dry_run: DryRun = False, asked: Mounted, output: JustJson) -> None:
    """Remove a deployment with its /etc; `gc` frees its space."""
    chosen = keep.delete(asked.open(), deployment, dry_run=dry_run)
    output.say(
        {"digest": chosen.digest.hex, "deleted": not dry_run},
        f"{chosen.digest} {'would be' if dry_run else 'is'} deleted",
    )
