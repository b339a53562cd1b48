"""A new image for a machine: installed into directories, upgraded from where it came from, or switched to another."""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from oci2boot.errors import TargetError
from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import open_source
from oci2boot.store.images import Bootable, find_image, saved_images
from oci2boot.store.layers import has_layer
from oci2boot.store.repository import Repository
from oci2boot.sysroot.deployments import DeployedState
from oci2boot.sysroot.machine import Sysroot, changing
from oci2boot.sysroot.state import SysrootState, read_state
from oci2boot.system.run import run
from oci2boot.workflows.machine.deploy import (
    DeployOptions,
    DeployPlan,
    apply_deployment,
    plan_deployment,
)
from oci2boot.workflows.machine.keep import retire
from oci2boot.workflows.machine.soft_reboot import soft_reboot
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Report, Told
from oci2boot.workflows.requests import BootOptions, ConvertRequest

Mode = Literal["check", "download", "deploy"]


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    sysroot: Sysroot
    mode: Mode = "deploy"
    given: BootOptions = field(default_factory=BootOptions)
    """Keys and certificates, which no record holds."""
    options: DeployOptions = field(default_factory=DeployOptions)
    dry_run: bool = False
    keep: int | None = None
    """How many deployments may be left afterwards; None keeps all that there is room for."""


@dataclass(frozen=True, slots=True)
class News:
    """What the reference of an image leads to now."""

    source: str
    changed: bool
    manifest: str | None
    """None for a directory, which has none; it always counts as changed."""
    layers: int = 0
    """That the repository lacks."""
    bytes: int = 0
    """To fetch, compressed."""

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "changed": self.changed,
            "manifest": self.manifest,
            "fetch": {"layers": self.layers, "bytes": self.bytes},
        }


@dataclass(frozen=True, slots=True)
class Upgraded:
    outcome: Literal["up to date", "rejected", "available", "downloaded", "planned", "deployed"]
    """`rejected`: it is deployed, and was rolled back or did not boot."""
    news: News | None = None
    bootable: Bootable | None = None
    plan: DeployPlan | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "news": self.news.to_json() if self.news else None,
            "image": self.bootable.to_json() if self.bootable else None,
            "plan": self.plan.to_json() if self.plan else None,
        }


def upgrade(request: UpgradeRequest, report: Report) -> Upgraded:
    """Bring the machine to what the reference of its image leads to now."""
    sysroot = request.sysroot
    if request.mode == "check" or request.dry_run:
        with Repository.open(sysroot.repository) as repository:
            return _look(request, read_state(sysroot), repository)
    with changing(sysroot):
        state = read_state(sysroot)
        bootable = tracked(state)
        with Repository.open(sysroot.repository) as repository:
            news = find_news(bootable, request.given, repository)
        if not news.changed:
            return Upgraded("up to date", news, bootable)
        if rejected(state, news):
            return Upgraded("rejected", news, bootable)
        with tempfile.TemporaryDirectory(prefix="oci2boot-") as scratch:
            again = request_again(bootable, sysroot.repository, Path(scratch), request.given)
            found = convert(again, report)
        return _deploy_converted(request, state, found, news, report)


def switch(request: UpgradeRequest, wanted: ConvertRequest, report: Report) -> Upgraded:
    """Bring the machine to another image; from then on it is upgraded from there."""
    sysroot = request.sysroot
    if request.dry_run:
        with Repository.open(sysroot.repository) as repository:
            return _look_at(request, wanted, read_state(sysroot), repository)
    with changing(sysroot):
        state = read_state(sysroot)
        found = convert(wanted, report)
        return _deploy_converted(request, state, found, None, report)


def reboot_into(sysroot: Sysroot, done: Upgraded, *, soft: bool = False) -> None:
    """Restart this machine if something new was deployed; with `soft`, all of it but the kernel."""
    if done.outcome != "deployed" or done.bootable is None:
        return
    if soft:
        soft_reboot(sysroot, done.bootable.rootfs)
    else:
        run(["systemctl", "reboot"], package="systemd")


def _deploy_converted(
    request: UpgradeRequest, state: SysrootState, bootable: Bootable, news: News | None, report: Report
) -> Upgraded:
    if request.mode == "download":
        return Upgraded("downloaded", news, bootable)
    with Repository.open(state.sysroot.repository) as repository:
        following = state.next
        if following and following.digest == bootable.rootfs and _same_boot_files(following, bootable):
            report(Told("this is the image that boots next already"))
            return Upgraded("up to date", news, bootable)
        plan = plan_deployment(state, repository, repository, bootable, _options(request, bootable))
        apply_deployment(plan, state, repository, repository, report)
    for one in retire(state.sysroot, request.keep) if request.keep else ():
        report(Told(f"{one.digest} is older than the {request.keep} that are kept, and deleted"))
    return Upgraded("deployed", news, bootable, plan)


def _options(request: UpgradeRequest, bootable: Bootable) -> DeployOptions:
    """What was allowed once is in the image's record, and in its kernel argument."""
    allowed = request.options.allow_missing_verity or bootable.options.get("allow_missing_verity") is True
    return replace(request.options, allow_missing_verity=allowed)


def _same_boot_files(deployment: DeployedState, bootable: Bootable) -> bool:
    """Compare contents: a name may have been taken."""
    kept = (deployment.record or {}).get("esp", {})
    return sorted(kept.values()) == sorted(map(str, bootable.esp.values()))


def _look(request: UpgradeRequest, state: SysrootState, repository: Repository) -> Upgraded:
    bootable = tracked(state)
    news = find_news(bootable, request.given, repository)
    if not news.changed:
        return Upgraded("up to date", news, bootable)
    if rejected(state, news):
        return Upgraded("rejected", news, bootable)
    if request.mode == "deploy":
        stored = find_image(repository, bootable.name)
        if stored.manifest and str(stored.manifest) == news.manifest:
            return Upgraded(
                "planned",
                news,
                stored,
                plan_deployment(state, repository, repository, stored, _options(request, stored)),
            )
    return Upgraded("available", news, bootable)


def _look_at(request: UpgradeRequest, wanted: ConvertRequest, state: SysrootState, repository: Repository) -> Upgraded:
    """Plan a switch to what is here already, else say what is to be fetched for it."""
    news = _news(wanted, repository, None)
    here = [one for one in saved_images(repository) if one.manifest and str(one.manifest) == news.manifest]
    if not here:
        return Upgraded("available", news)
    plan = plan_deployment(state, repository, repository, here[0], _options(request, here[0]))
    return Upgraded("planned", news, here[0], plan)


def rejected(state: SysrootState, news: News) -> bool:
    """Tell whether the new image is here and was put back: who upgrades unattended would boot it for ever.

    One that was deployed before what boots next is not: its publisher went back to it. Nor is one without a boot entry:
    the command that made it was stopped.
    """
    since = state.next.deployed or 0 if state.next else 0
    return news.manifest is not None and any(
        one.record
        and one.record.get("manifest") == news.manifest
        and (one.deployed or 0) > since
        and state.entries_of(one.digest)
        for one in state.deployments
    )


def tracked(state: SysrootState) -> Bootable:
    """Return what the machine's next upgrade is the next version of: what boots next, or else what runs."""
    for one in (state.next, state.current):
        if one and one.record:
            return parse_record(one)
    raise TargetError(
        "nothing says where this machine's image came from", hint="`oci2boot switch SOURCE` installs one from there"
    )


def parse_record(deployment: DeployedState) -> Bootable:
    if deployment.record is None:
        raise TargetError(f"{deployment.digest} was deployed by another program, without a record")
    return Bootable.from_json(dict(deployment.record))


def find_news(bootable: Bootable, given: BootOptions, repository: Repository) -> News:
    """Ask the source; only the manifest and config are fetched."""
    with tempfile.TemporaryDirectory(prefix="oci2boot-") as scratch:
        again = request_again(bootable, repository.path, Path(scratch), given)
    return _news(again, repository, str(bootable.manifest))


def _news(again: ConvertRequest, repository: Repository, known: str | None) -> News:
    if isinstance(again.source, DirectoryReference):
        return News(str(again.source), True, None)
    with open_source(again.source, again.options) as source:
        image = source.fetch()
        manifest = str(image.manifest_digest)
        lacking = [layer for layer in image.layers if not has_layer(repository, layer.diff_id)]
    sizes = {layer.digest: layer.size for layer in lacking}
    return News(str(again.source), manifest != known, manifest, len(sizes), sum(sizes.values()))
