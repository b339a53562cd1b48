"""A machine that lives on: status, upgrade, switch, rollback, pin, delete."""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output, signing
from oci2boot.cli.machine_text import show_status, show_upgraded, warn
from oci2boot.cli.options import (
    AllowMissingVerity,
    AsJson,
    Db,
    Flow,
    Kargs,
    ProgressJson,
    Quiet,
    Repo,
    Source,
    TlsVerify,
    repo_path,
    source_options,
)
from oci2boot.errors import Error
from oci2boot.sysroot.etc import EtcPolicy
from oci2boot.sysroot.machine import Sysroot, open_sysroot
from oci2boot.workflows.machine import keep as choose
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.place import Place, find_place
from oci2boot.workflows.machine.rollback import rollback as run_rollback
from oci2boot.workflows.machine.status import read_status
from oci2boot.workflows.machine.upgrade import Goal, Upgraded, UpgradeRequest, reboot_into
from oci2boot.workflows.machine.upgrade import switch as run_switch
from oci2boot.workflows.machine.upgrade import upgrade as run_upgrade
from oci2boot.workflows.requests import BootOptions, ConvertRequest, parse_source

SysrootDir = Annotated[
    Path | None,
    typer.Option("--sysroot", metavar="DIR", help="the physical root of another machine", show_default=False),
]
EspDir = Annotated[
    Path | None, typer.Option("--esp", metavar="DIR", help="its boot directory, the ESP", show_default=False)
]
DiskPath = Annotated[
    Path | None,
    typer.Option(
        "--disk",
        metavar="DISK",
        help="a disk or disk image with two slots under dm-verity, that nothing runs from",
        show_default=False,
    ),
]
Etc = Annotated[
    list[str] | None,
    typer.Option("--etc", help="who wins in /etc: ours, theirs or stop, or /etc/GLOB=theirs", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show the plan, write nothing")]
Id = Annotated[str, typer.Argument(help="the start of a deployment's digest", show_default=False)]
CheckOnly = Annotated[bool, typer.Option("--check", help="only say whether there is something new")]
DownloadOnly = Annotated[bool, typer.Option("--download-only", help="store it, and boot it another time")]
Apply = Annotated[bool, typer.Option("--apply", help="reboot into it")]
SoftReboot = Annotated[
    bool,
    typer.Option(
        "--soft-reboot",
        help="with --apply: restart all but the kernel, if that is the same; what the TPM measured stays as it was",
    ),
]


def register(app: typer.Typer) -> None:
    for command in (status, upgrade, switch, rollback, pin, unpin, delete):
        app.command()(command)


def status(sysroot: SysrootDir = None, esp: EspDir = None, disk: DiskPath = None, as_json: AsJson = False) -> None:
    """Show what this machine runs, what it boots next, and what else it keeps."""
    found = read_status(find_place(disk, sysroot, esp))
    if as_json:
        output.print_json(found.to_json())
    else:
        show_status(found)


def upgrade(
    check: CheckOnly = False,
    download_only: DownloadOnly = False,
    apply: Apply = False,
    soft_reboot: SoftReboot = False,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=2, help="delete older deployments that are not pinned, but for so many in all"),
    ] = None,
    etc: Etc = None,
    dry_run: DryRun = False,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    disk: DiskPath = None,
    repo: Repo = None,
    db: Db = None,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    sign_command: signing.SignCommand = None,
    signtool: signing.SignTool = None,
    pkcs11_module: signing.Pkcs11Module = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring this machine to what its image's reference leads to now; the next boot takes it."""
    signer = signing.signing_options(key, certificate, passphrase, sign_command, signtool, pkcs11_module, None, None)
    place = _place(disk, sysroot, esp, repo, keep=keep, etc=etc, soft_reboot=soft_reboot)
    request = UpgradeRequest(
        place,
        _goal(place, check=check, download=download_only, apply=apply, soft=soft_reboot),
        BootOptions(signing=signer, db=tuple(db or ())),
        DeployOptions(EtcPolicy.parse(tuple(etc or ())), keep=keep),
        dry_run,
    )
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        done = run_upgrade(request, report)
    _finish(place, done, reboot=apply, soft=soft_reboot, as_json=as_json)


def switch(
    source: Source,
    name: Annotated[str | None, typer.Option("--name", help="what to call it", show_default=False)] = None,
    download_only: DownloadOnly = False,
    apply: Apply = False,
    soft_reboot: SoftReboot = False,
    etc: Etc = None,
    dry_run: DryRun = False,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    disk: DiskPath = None,
    repo: Repo = None,
    flow: Flow = "auto",
    karg: Kargs = None,
    allow_missing_verity: AllowMissingVerity = False,
    db: Db = None,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    sign_command: signing.SignCommand = None,
    signtool: signing.SignTool = None,
    pkcs11_module: signing.Pkcs11Module = None,
    tls_verify: TlsVerify = "true",
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring this machine to another image, and follow that one from then on."""
    signer = signing.signing_options(key, certificate, passphrase, sign_command, signtool, pkcs11_module, None, None)
    others = {"flow": flow, "karg": karg, "allow_missing_verity": allow_missing_verity}
    place = _place(disk, sysroot, esp, repo, etc=etc, **others, soft_reboot=soft_reboot)
    boot = BootOptions(
        kargs=tuple(karg or ()),
        flow=flow,
        allow_missing_verity=allow_missing_verity,
        signing=signer,
        db=tuple(db or ()),
    )
    wanted = ConvertRequest(
        source=parse_source(source),
        repo=place.repository,
        name=name,
        options=source_options(tls_verify=tls_verify),
        boot=boot,
    )
    options = DeployOptions(EtcPolicy.parse(tuple(etc or ())), allow_missing_verity)
    goal = _goal(place, check=False, download=download_only, apply=apply, soft=soft_reboot)
    request = UpgradeRequest(place, goal, boot, options, dry_run)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        done = run_switch(request, wanted, report)
    _finish(place, done, reboot=apply, soft=soft_reboot, as_json=as_json)


def rollback(
    deployment: Annotated[
        str | None, typer.Argument(help="the start of its digest; the one before by default", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    disk: DiskPath = None,
    as_json: AsJson = False,
) -> None:
    """Let the deployment before boot next, or the one that is named."""
    chosen, plan = run_rollback(find_place(disk, sysroot, esp), deployment, dry_run=dry_run)
    if as_json:
        named = "digest" if "digest" in chosen.facts else "root_hash"
        output.print_json({"id": chosen.id, named: chosen.id, "boot": plan.to_json(), "written": not dry_run})
        return
    warn(plan.problems)
    output.out.print(f"{chosen.id} {'would boot' if dry_run else 'boots'} next")


def pin(deployment: Id, sysroot: SysrootDir = None, esp: EspDir = None, as_json: AsJson = False) -> None:
    """Keep a deployment, whatever needs its place."""
    _pinned(deployment, sysroot, esp, pinned=True, as_json=as_json)


def unpin(deployment: Id, sysroot: SysrootDir = None, esp: EspDir = None, as_json: AsJson = False) -> None:
    """Keep a deployment no longer than there is room."""
    _pinned(deployment, sysroot, esp, pinned=False, as_json=as_json)


def delete(
    deployment: Id, dry_run: DryRun = False, sysroot: SysrootDir = None, esp: EspDir = None, as_json: AsJson = False
) -> None:
    """Remove a deployment with its /etc; `gc` frees its space."""
    chosen = choose.delete(open_sysroot(sysroot, esp), deployment, dry_run=dry_run)
    if as_json:
        output.print_json({"digest": chosen.digest.hex, "deleted": not dry_run})
    else:
        output.out.print(f"{chosen.digest} {'would be' if dry_run else 'is'} deleted")


def _pinned(deployment: str, sysroot: Path | None, esp: Path | None, *, pinned: bool, as_json: bool) -> None:
    chosen = choose.pin(open_sysroot(sysroot, esp), deployment, pinned=pinned)
    if as_json:
        output.print_json({"digest": chosen.digest.hex, "pinned": pinned})
    else:
        output.out.print(f"{chosen.digest} is {'pinned' if pinned else 'not pinned'}")


def _place(disk: Path | None, sysroot: Path | None, esp: Path | None, repo: Path | None, **others: object) -> Place:
    """Find the machine; `others` are options that are not for one with slots."""
    place = find_place(disk, sysroot, esp, repo_path(repo, writing=True) if disk else repo)
    for name, value in others.items() if not isinstance(place, Sysroot) else ():
        if value not in (None, False, (), [], "auto"):
            raise Error(
                f"--{name.replace('_', '-')} is not for a root file system under dm-verity",
                hint="leave it out: the new image is made as the one before",
            )
    return place


def _goal(place: Place, *, check: bool, download: bool, apply: bool, soft: bool) -> Goal:
    if check + download + apply > 1:
        raise Error("--check, --download-only and --apply exclude each other")
    if soft and not apply:
        raise Error("--soft-reboot says how, and --apply that it reboots", hint="give both")
    if apply and not place.live:
        named = "--sysroot" if isinstance(place, Sysroot) else "--disk"
        raise Error(f"--apply restarts this machine, and {named} names another one")
    return "check" if check else "download" if download else "deploy"


def _finish(place: Place, done: Upgraded, *, reboot: bool, soft: bool, as_json: bool) -> None:
    if as_json:
        output.print_json(done.to_json())
    else:
        show_upgraded(done)
    if reboot:
        reboot_into(place, done, soft=soft)
