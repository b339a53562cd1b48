"""A machine that lives on: status, upgrade, switch, rollback, pin, delete."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from rich.markup import escape

from oci2boot.cli.groups import Only
from oci2boot.cli.options import DryRun, JustJson, Mounted, SigningNow, TlsVerify
from oci2boot.cli.output import Output, err, out, print_etc, print_facts, print_json, print_table, size
from oci2boot.errors import Error
from oci2boot.workflows.machine import keep as choose
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.model import DeployPlan
from oci2boot.workflows.machine.place import AskedPlace
from oci2boot.workflows.machine.rollback import rollback as run_rollback
from oci2boot.workflows.machine.slot_deploy import SlotPlan
from oci2boot.workflows.machine.status import Status, read_status
from oci2boot.workflows.machine.upgrade import Goal, News, Upgraded, UpgradeRequest, reboot_into
from oci2boot.workflows.machine.upgrade import switch as run_switch
from oci2boot.workflows.machine.upgrade import upgrade as run_upgrade
from oci2boot.workflows.options import Option, said
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
    output.show(read_status(asked.find()), _show_status)


def upgrade(
    *,
    extent: Extent,
    options: Annotated[DeployOptions, Only("etc", "keep")],
    dry_run: DryRun = False,
    asked: AskedPlace,
    repo: ChosenRepo = None,
    given: Annotated[BootOptions, Only("db")],
    signing: SigningNow,
    output: Output,
) -> None:
    """Bring this machine to what its image's reference leads to now; the next boot takes it."""
    place = asked.find(asked.store(repo), others=[*said(options), *(["--soft-reboot"] if extent.soft else [])])
    goal = extent.goal(asked, live=place.live)
    request = UpgradeRequest(place, goal, replace(given, signing=signing), options, dry_run)
    with output.reporting() as report:
        done = run_upgrade(request, report)
    output.show(done, _show_upgraded)
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
    boot: Annotated[BootOptions, Only("flow", "kargs", "allow_missing_verity", "db")],
    signing: SigningNow,
    fetching: TlsVerify,
    output: Output,
) -> None:
    """Bring this machine to another image, and follow that one from then on."""
    others = [*said(options), *said(replace(boot, db=())), *(["--soft-reboot"] if extent.soft else [])]
    place = asked.find(asked.store(repo), others=others)
    goal = extent.goal(asked, live=place.live)
    boot = replace(boot, signing=signing)
    options = replace(options, allow_missing_verity=boot.allow_missing_verity)
    wanted = ConvertRequest(source=source, repo=place.repository, name=name, options=fetching.options(), boot=boot)
    request = UpgradeRequest(place, goal, boot, options, dry_run)
    with output.reporting() as report:
        done = run_switch(request, wanted, report)
    output.show(done, _show_upgraded)
    if extent.apply:
        reboot_into(place, done, soft=extent.soft)


def rollback(
    *,
    deployment: Annotated[
        str | None, Option("DEPLOYMENT", "the start of its digest; the one before by default")
    ] = None,
    dry_run: DryRun = False,
    asked: AskedPlace,
    output: JustJson,
) -> None:
    """Let the deployment before boot next, or the one that is named."""
    chosen, plan = run_rollback(asked.find(), deployment, dry_run=dry_run)
    if output.as_json:
        named = "digest" if "digest" in chosen.facts else "root_hash"
        print_json({"id": chosen.id, named: chosen.id, "boot": plan.to_json(), "written": not dry_run})
        return
    _warn(plan.problems)
    out.print(f"{chosen.id} {'would boot' if dry_run else 'boots'} next")


def pin(*, deployment: Id, asked: Mounted, output: JustJson) -> None:
    """Keep a deployment, whatever needs its place."""
    _pinned(deployment, asked, output, pinned=True)


def unpin(*, deployment: Id, asked: Mounted, output: JustJson) -> None:
    """Keep a deployment no longer than there is room."""
    _pinned(deployment, asked, output, pinned=False)


def _pinned(deployment: str, asked: AskedPlace, output: Output, *, pinned: bool) -> None:
    chosen = choose.pin(asked.open(), deployment, pinned=pinned)
    output.say(
        {"digest": chosen.digest.hex, "pinned": pinned}, f"{chosen.digest} is {'pinned' if pinned else 'not pinned'}"
    )


def delete(*, deployment: Id, dry_run: DryRun = False, asked: Mounted, output: JustJson) -> None:
    """Remove a deployment with its /etc; `gc` frees its space."""
    chosen = choose.delete(asked.open(), deployment, dry_run=dry_run)
    output.say(
        {"digest": chosen.digest.hex, "deleted": not dry_run},
        f"{chosen.digest} {'would be' if dry_run else 'is'} deleted",
    )


_COLUMNS: Final = {
    "composefs": ("STATE", "DIGEST", "SYSTEM", "SOURCE", "DEPLOYED", "VERITY", "SIGNED BY", "BOOTS"),
    "verity": ("STATE", "ROOT HASH", "SYSTEM", "SOURCE", "PARTITIONS", "BOOTS"),
}


def _show_status(found: Status) -> None:
    facts = found.to_json()
    print_table(_COLUMNS[found.state.mode], map(_row, facts["deployments"]))
    for part in facts.get("free", ()):
        what = "empty" if part["empty"] else "free"
        out.print(f"partition {part['partition']} is {what}, {size(part['size'])}")
    if found.state.mode == "composefs":
        out.print(_next_boot(found), soft_wrap=True)
    for image in found.downloaded:
        out.print(f"downloaded: {escape(image.name)} {image.root.image.hex[:12]}")
    _warn(found.problems)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    if "partitions" in one:
        own = [", ".join(str(part["number"]) for part in one["partitions"])]
    else:
        signers = sorted({signer for entry in one["entries"] for signer in entry["signers"]})
        own = [
            (one["deployed"] or "")[:16].replace("T", " "),
            one["verity"] or "no entry",
            ", ".join(signers) or "nobody",
        ]
    begin = (", ".join(one["states"]), one["id"][:12], one["title"] or "unknown", one["source"] or "")
    return (*begin, *own, ", ".join(filter(None, map(_counted, one["entries"]))))


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
    following = state.next.id[:12]
    if state.booted is None:
        return f"{following} boots next"
    if state.next.id == state.booted:
        return f"{following} runs, and boots next"
    return f"{state.booted[:12]} runs, {following} boots next: restart the machine to change to it"


def _warn(problems: Iterable[str]) -> None:
    for problem in problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")


def plan_facts(plan: DeployPlan) -> list[tuple[str, str]]:
    """Show what happens to /etc, and return the rest."""
    image = [("image", f"{plan.bootable.name} ({plan.bootable.title})"), ("boots", str(plan.bootable.cmdline))]
    if isinstance(plan, SlotPlan):
        return [
            *image,
            ("partitions", ", ".join(str(write.partition.number) for write in plan.writes) or "as they are"),
            ("falls back to", plan.kept.id if plan.kept else "nothing"),
            ("removed entries", ", ".join(entry.id for entry in plan.doomed) or "none"),
        ]
    facts = plan.to_json()
    print_etc((facts["etc"] or {"rows": []})["rows"])
    return [
        *image,
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
