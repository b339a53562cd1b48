"""What the commands of a machine that lives on show to people."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.markup import escape

from oci2boot.cli import output
from oci2boot.workflows.machine.model import DeployPlan
from oci2boot.workflows.machine.slot_deploy import SlotPlan
from oci2boot.workflows.machine.status import Status
from oci2boot.workflows.machine.upgrade import News, Upgraded

_COLUMNS: Final = {
    "composefs": ("STATE", "DIGEST", "SYSTEM", "SOURCE", "DEPLOYED", "VERITY", "SIGNED BY", "BOOTS"),
    "verity": ("STATE", "ROOT HASH", "SYSTEM", "SOURCE", "PARTITIONS", "BOOTS"),
}


def show_status(found: Status) -> None:
    facts = found.to_json()
    output.print_table(_COLUMNS[found.state.mode], map(_row, facts["deployments"]))
    for part in facts.get("free", ()):
        what = "empty" if part["empty"] else "free"
        output.out.print(f"partition {part['partition']} is {what}, {output.size(part['size'])}")
    if found.state.mode == "composefs":
        output.out.print(_next_boot(found), soft_wrap=True)
    for text in _demanded(found):
        output.out.print(text, soft_wrap=True)
    for image in found.downloaded:
        output.out.print(f"downloaded: {escape(image.name)} {image.root.image.hex[:12]}")
    warn(found.problems)


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


def _demanded(found: Status) -> Iterable[str]:
    """Say what the next image has to be, and what was given up."""
    state = found.state
    following = state.next.id if state.next else None
    for one in found.to_json()["deployments"]:
        if one["id"] == following and (outcome := one["outcome"]):
            signed = f", signed by {' and '.join(outcome['signed_by'])}" if outcome["signed_by"] else ""
            if signed or outcome["kind"] == "sealed":
                dated = any(entry["image_version"] for entry in one["entries"])
                age = ", and not older" if dated else "; it may be older, as this one has no IMAGE_VERSION"
                yield escape(f"the next image must be {outcome['kind']}{signed}, too{age}")
            if outcome["given_up"]:
                yield escape(f"it was {outcome['given_up']}, until less was allowed")


def warn(problems: Iterable[str]) -> None:
    for problem in problems:
        output.err.print(f"[yellow]warning:[/] {escape(problem)}")


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
    output.print_etc((facts["etc"] or {"rows": []})["rows"])
    return [
        *image,
        ("objects", f"{facts['objects']['added']} added, {output.size(facts['objects']['added_bytes'])}"),
        ("first entry", plan.boot.first),
        ("removed entries", ", ".join(plan.boot.removed) or "none"),
    ]


def show_upgraded(done: Upgraded) -> None:
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
