"""A machine that lives on: status, upgrade, switch, rollback, pin, delete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from oci2boot.cli import output, signing, slots
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
    source_options,
)
from oci2boot.errors import Error
from oci2boot.sysroot.etc import EtcPolicy
from oci2boot.sysroot.machine import Sysroot, open_sysroot
from oci2boot.workflows.machine import rollback as choose
from oci2boot.workflows.machine.deployments import DeployOptions, DeployPlan
from oci2boot.workflows.machine.status import Status, read_status
from oci2boot.workflows.machine.upgrade import Mode, News, Upgraded, UpgradeRequest, reboot_into
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


def status(
    sysroot: SysrootDir = None, esp: EspDir = None, disk: slots.DiskPath = None, as_json: AsJson = False
) -> None:
    """Show what this machine runs, what it boots next, and what else it keeps."""
    if found_slots := slots.place_of(disk, sysroot, esp):
        slots.show_status(found_slots, as_json=as_json)
        return
    found = read_status(open_sysroot(sysroot, esp))
    if as_json:
        output.print_json(found.to_json())
    else:
        _show_status(found)


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
    disk: slots.DiskPath = None,
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
    if found := slots.place_of(disk, sysroot, esp, keep=keep, etc=etc, soft_reboot=soft_reboot):
        slots.upgrade(
            found,
            slots.mode_of(found, check=check, download=download_only, apply=apply),
            BootOptions(signing=signer, db=tuple(db or ())),
            repo,
            dry_run=dry_run,
            apply=apply,
            as_json=as_json,
            progress_json=progress_json,
            quiet=quiet,
        )
        return
    place = open_sysroot(sysroot, esp)
    request = UpgradeRequest(
        place,
        _mode(place, check=check, download=download_only, apply=apply, soft=soft_reboot),
        BootOptions(
            signing=signer,
            db=tuple(db or ()),
        ),
        DeployOptions(EtcPolicy.parse(tuple(etc or ()))),
        dry_run,
        keep,
    )
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        done = run_upgrade(request, report)
    _show_upgraded(done, as_json=as_json)
    if apply:
        reboot_into(place, done, soft=soft_reboot)


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
    disk: slots.DiskPath = None,
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
    if found := slots.place_of(disk, sysroot, esp, etc=etc, **others, soft_reboot=soft_reboot):
        slots.switch(
            found,
            slots.mode_of(found, check=False, download=download_only, apply=apply),
            parse_source(source),
            name,
            BootOptions(signing=signer, db=tuple(db or ())),
            repo,
            dry_run=dry_run,
            apply=apply,
            as_json=as_json,
            progress_json=progress_json,
            quiet=quiet,
        )
        return
    place = open_sysroot(sysroot, esp)
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
    mode = _mode(place, check=False, download=download_only, apply=apply, soft=soft_reboot)
    request = UpgradeRequest(place, mode, boot, options, dry_run)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        done = run_switch(request, wanted, report)
    _show_upgraded(done, as_json=as_json)
    if apply:
        reboot_into(place, done, soft=soft_reboot)


def rollback(
    deployment: Annotated[
        str | None, typer.Argument(help="the start of its digest; the one before by default", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    disk: slots.DiskPath = None,
    as_json: AsJson = False,
) -> None:
    """Let the deployment before boot next, or the one that is named."""
    if found := slots.place_of(disk, sysroot, esp):
        slots.rollback(found, deployment, dry_run=dry_run, as_json=as_json)
        return
    chosen, plan = choose.rollback(open_sysroot(sysroot, esp), deployment, dry_run=dry_run)
    if as_json:
        output.print_json({"digest": chosen.digest.hex, "boot": plan.to_json(), "written": not dry_run})
        return
    for problem in plan.problems:
        output.err.print(f"[yellow]warning:[/] {escape(problem)}")
    output.out.print(f"{chosen.digest} {'would boot' if dry_run else 'boots'} next")


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


def _mode(place: Sysroot, *, check: bool, download: bool, apply: bool, soft: bool) -> Mode:
    if check + download + apply > 1:
        raise Error("--check, --download-only and --apply exclude each other")
    if soft and not apply:
        raise Error("--soft-reboot says how, and --apply that it reboots", hint="give both")
    if apply and not place.live:
        raise Error("--apply restarts this machine, and --sysroot names another one")
    return "check" if check else "download" if download else "deploy"


def _show_status(found: Status) -> None:
    rows = []
    for one in found.to_json()["deployments"]:
        counters = ", ".join(filter(None, map(_counted, one["entries"])))
        signers = sorted({signer for entry in one["entries"] for signer in entry["signers"]})
        rows.append(
            (
                ", ".join(one["states"]),
                one["digest"][:12],
                one["title"] or "unknown",
                one["source"] or "",
                (one["deployed"] or "")[:16].replace("T", " "),
                one["verity"] or "no entry",
                ", ".join(signers) or "nobody",
                counters,
            )
        )
    output.print_table(("STATE", "DIGEST", "SYSTEM", "SOURCE", "DEPLOYED", "VERITY", "SIGNED BY", "BOOTS"), rows)
    output.out.print(_next_boot(found), soft_wrap=True)
    for name, digest in found.downloaded:
        output.out.print(f"downloaded: {escape(name)} {digest.hex[:12]}")
    for problem in found.problems:
        output.err.print(f"[yellow]warning:[/] {escape(problem)}")


def _counted(entry: Mapping[str, Any]) -> str:
    """Say what the boot loader knows of an entry. systemd, Automatic Boot Assessment."""
    if entry["bad"]:
        return "failed"
    if entry["tries_left"] == 0:
        return "put back"
    return "" if entry["tries_left"] is None else f"{entry['tries_left']} tries left"


def _next_boot(found: Status) -> str:
    state = found.state
    if state.next is None:
        return "what boots next is none of these: another system's entry is first"
    following = state.next.digest.hex[:12]
    if state.booted is None:
        return f"{following} boots next"
    if state.next.digest == state.booted:
        return f"{following} runs, and boots next"
    return f"{state.booted.hex[:12]} runs, {following} boots next: restart the machine to change to it"


def plan_facts(plan: DeployPlan) -> list[tuple[str, str]]:
    """Show what happens to /etc, and return the rest."""
    facts = plan.to_json()
    output.print_etc((facts["etc"] or {"rows": []})["rows"])
    return [
        ("image", f"{plan.bootable.name} ({plan.bootable.title})"),
        ("boots", str(plan.bootable.cmdline)),
        ("objects", f"{facts['objects']['added']} added, {output.size(facts['objects']['added_bytes'])}"),
        ("first entry", plan.boot.first),
        ("removed entries", ", ".join(plan.boot.removed) or "none"),
    ]


def _show_upgraded(done: Upgraded, *, as_json: bool) -> None:
    if as_json:
        output.print_json(done.to_json())
        return
    if done.plan:
        output.print_facts(plan_facts(done.plan))
    text = {
        "up to date": "nothing is newer than what boots next",
        "rejected": "the newer image is here, and was rolled back or did not boot: `oci2boot rollback ID` boots it, "
        "`oci2boot status` shows its ID",
        "available": _available(done.news) if done.news else "",
        "downloaded": "downloaded; `oci2boot upgrade` deploys it",
        "planned": "nothing was written",
        "deployed": "deployed; the next boot takes it",
    }
    output.out.print(text[done.outcome], soft_wrap=True)


def _available(news: News) -> str:
    fetch = f"{news.layers} layers, {output.size(news.bytes)} to fetch" if news.layers else "nothing to fetch"
    return f"there is a newer image: {fetch}. --download-only stores it, and then --dry-run shows what it would change"
