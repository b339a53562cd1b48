"""A machine that lives on: status, upgrade, switch, rollback, pin, delete."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from rich.markup import escape

from oci2boot.cli import slots
from oci2boot.cli.groups import Only
from oci2boot.cli.options import DryRun, Etc, JustJson, SigningNow, TlsVerify
from oci2boot.cli.output import Output, err, out, print_etc, print_facts, print_json, print_table, size
from oci2boot.cli.place import Mounted, Place
from oci2boot.errors import Error
from oci2boot.sysroot.etc import EtcPolicy
from oci2boot.sysroot.machine import Sysroot
from oci2boot.workflows.machine import rollback as choose
from oci2boot.workflows.machine.deployments import DeployOptions, DeployPlan
from oci2boot.workflows.machine.status import Status, read_status
from oci2boot.workflows.machine.upgrade import Mode, News, Upgraded, UpgradeRequest, reboot_into
from oci2boot.workflows.machine.upgrade import switch as run_switch
from oci2boot.workflows.machine.upgrade import upgrade as run_upgrade
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import BootOptions, ChosenRepo, ConvertRequest, Name, Source

Id = Annotated[str, Option("DEPLOYMENT", "the start of a deployment's digest")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How far a change goes."""

    check: Annotated[bool, Option("--check", "only say whether there is something new")] = False
    download: Annotated[bool, Option("--download-only", "store it, and boot it another time")] = False
    apply: Annotated[bool, Option("--apply", "reboot into it")] = False
    soft: Annotated[
        bool,
        Option(
            "--soft-reboot",
            "with --apply: restart all but the kernel, if that is the same; what the TPM measured stays as it was",
        ),
    ] = False


def status(*, place: Place, output: JustJson) -> None:
    """Show what this machine runs, what it boots next, and what else it keeps."""
    if found_slots := slots.place_of(place.disk, place.sysroot, place.esp):
        slots.show_status(found_slots, as_json=output.as_json)
        return
    output.show(read_status(place.open()), _show_status)


def upgrade(
    *,
    extent: Extent,
    keep: Annotated[
        int | None,
        Option("--keep", "delete older deployments that are not pinned, but for so many in all", least=2),
    ] = None,
    etc: Etc = (),
    dry_run: DryRun = False,
    place: Place,
    repo: ChosenRepo = None,
    boot: Annotated[BootOptions, Only("db")],
    signing: SigningNow,
    output: Output,
) -> None:
    """Bring this machine to what its image's reference leads to now; the next boot takes it."""
    given = replace(boot, signing=signing)
    if found := slots.place_of(place.disk, place.sysroot, place.esp, keep=keep, etc=etc, soft_reboot=extent.soft):
        mode = slots.mode_of(found, check=extent.check, download=extent.download, apply=extent.apply)
        slots.upgrade(found, mode, given, repo, output, dry_run=dry_run, apply=extent.apply)
        return
    sysroot = place.open()
    options = DeployOptions(EtcPolicy.parse(etc))
    request = UpgradeRequest(sysroot, _mode(sysroot, extent), given, options, dry_run, keep)
    with output.reporting() as report:
        done = run_upgrade(request, report)
    output.show(done, _show_upgraded)
    if extent.apply:
        reboot_into(sysroot, done, soft=extent.soft)


def switch(
    *,
    source: Source,
    name: Name = None,
    extent: Annotated[Extent, Only("download", "apply", "soft")],
    etc: Etc = (),
    dry_run: DryRun = False,
    place: Place,
    repo: ChosenRepo = None,
    boot: Annotated[BootOptions, Only("flow", "kargs", "allow_missing_verity", "db")],
    signing: SigningNow,
    fetching: TlsVerify,
    output: Output,
) -> None:
    """Bring this machine to another image, and follow that one from then on."""
    boot = replace(boot, signing=signing)
    others = {"flow": boot.flow, "karg": boot.kargs, "allow_missing_verity": boot.allow_missing_verity}
    if found := slots.place_of(place.disk, place.sysroot, place.esp, etc=etc, **others, soft_reboot=extent.soft):
        mode = slots.mode_of(found, check=False, download=extent.download, apply=extent.apply)
        given = BootOptions(signing=signing, db=boot.db)
        slots.switch(found, mode, source, name, given, repo, output, dry_run=dry_run, apply=extent.apply)
        return
    sysroot = place.open()
    wanted = ConvertRequest(source=source, repo=sysroot.repository, name=name, options=fetching.options(), boot=boot)
    options = DeployOptions(EtcPolicy.parse(etc), boot.allow_missing_verity)
    request = UpgradeRequest(sysroot, _mode(sysroot, extent), boot, options, dry_run)
    with output.reporting() as report:
        done = run_switch(request, wanted, report)
    output.show(done, _show_upgraded)
    if extent.apply:
        reboot_into(sysroot, done, soft=extent.soft)


def rollback(
    *,
    deployment: Annotated[
        str | None, Option("DEPLOYMENT", "the start of its digest; the one before by default")
    ] = None,
    dry_run: DryRun = False,
    place: Place,
    output: JustJson,
) -> None:
    """Let the deployment before boot next, or the one that is named."""
    if found := slots.place_of(place.disk, place.sysroot, place.esp):
        slots.rollback(found, deployment, dry_run=dry_run, as_json=output.as_json)
        return
    chosen, plan = choose.rollback(place.open(), deployment, dry_run=dry_run)
    if output.as_json:
        print_json({"digest": chosen.digest.hex, "boot": plan.to_json(), "written": not dry_run})
        return
    for problem in plan.problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")
    out.print(f"{chosen.digest} {'would boot' if dry_run else 'boots'} next")


def pin(*, deployment: Id, place: Mounted, output: JustJson) -> None:
    """Keep a deployment, whatever needs its place."""
    _pinned(deployment, place, output, pinned=True)


def unpin(*, deployment: Id, place: Mounted, output: JustJson) -> None:
    """Keep a deployment no longer than there is room."""
    _pinned(deployment, place, output, pinned=False)


def delete(*, deployment: Id, dry_run: DryRun = False, place: Mounted, output: JustJson) -> None:
    """Remove a deployment with its /etc; `gc` frees its space."""
    chosen = choose.delete(place.open(), deployment, dry_run=dry_run)
    if output.as_json:
        print_json({"digest": chosen.digest.hex, "deleted": not dry_run})
    else:
        out.print(f"{chosen.digest} {'would be' if dry_run else 'is'} deleted")


def _pinned(deployment: str, place: Place, output: Output, *, pinned: bool) -> None:
    chosen = choose.pin(place.open(), deployment, pinned=pinned)
    if output.as_json:
        print_json({"digest": chosen.digest.hex, "pinned": pinned})
    else:
        out.print(f"{chosen.digest} is {'pinned' if pinned else 'not pinned'}")


def _mode(place: Sysroot, extent: Extent) -> Mode:
    if extent.check + extent.download + extent.apply > 1:
        raise Error("--check, --download-only and --apply exclude each other")
    if extent.soft and not extent.apply:
        raise Error("--soft-reboot says how, and --apply that it reboots", hint="give both")
    if extent.apply and not place.live:
        raise Error("--apply restarts this machine, and --sysroot names another one")
    return "check" if extent.check else "download" if extent.download else "deploy"


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
    print_table(("STATE", "DIGEST", "SYSTEM", "SOURCE", "DEPLOYED", "VERITY", "SIGNED BY", "BOOTS"), rows)
    out.print(_next_boot(found), soft_wrap=True)
    for name, digest in found.downloaded:
        out.print(f"downloaded: {escape(name)} {digest.hex[:12]}")
    for problem in found.problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")


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
    print_etc((facts["etc"] or {"rows": []})["rows"])
    return [
        ("image", f"{plan.bootable.name} ({plan.bootable.title})"),
        ("boots", str(plan.bootable.cmdline)),
        ("objects", f"{facts['objects']['added']} added, {size(facts['objects']['added_bytes'])}"),
        ("first entry", plan.boot.first),
        ("removed entries", ", ".join(plan.boot.removed) or "none"),
    ]


def _show_upgraded(done: Upgraded) -> None:
    if done.plan:
        print_facts(plan_facts(done.plan))
    text = {
        "up to date": "nothing is newer than what boots next",
        "rejected": "the newer image is here, and was rolled back or did not boot: `oci2boot rollback ID` boots it, "
        "`oci2boot status` shows its ID",
        "available": _available(done.news) if done.news else "",
        "downloaded": "downloaded; `oci2boot upgrade` deploys it",
        "planned": "nothing was written",
        "deployed": "deployed; the next boot takes it",
    }
    out.print(text[done.outcome], soft_wrap=True)


def _available(news: News) -> str:
    fetch = f"{news.layers} layers, {size(news.bytes)} to fetch" if news.layers else "nothing to fetch"
    return f"there is a newer image: {fetch}. --download-only stores it, and then --dry-run shows what it would change"
