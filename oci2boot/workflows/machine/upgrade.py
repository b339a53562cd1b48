"""A new image for a machine: the next version of the one that it has, or another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import open_source
from oci2boot.store.images import Bootable, saved_images
from oci2boot.store.layers import has_layer
from oci2boot.store.repository import Repository
from oci2boot.store.roots import Mode
from oci2boot.sysroot.machine import Sysroot
from oci2boot.system.run import run
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.model import DeployPlan, Machine
from oci2boot.workflows.machine.place import Place, open_machine
from oci2boot.workflows.machine.soft_reboot import soft_reboot
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Report, Told
from oci2boot.workflows.requests import BootOptions, ConvertRequest

Goal = Literal["check", "download", "deploy"]


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    place: Place
    goal: Goal = "deploy"
    given: BootOptions = field(default_factory=BootOptions)
    """Keys and certificates, which no record holds."""
    options: DeployOptions = field(default_factory=DeployOptions)
    """Of deployments in directories."""
    dry_run: bool = False
    authfile: Path | None = None
    """Of this one time: where it lies is no property of the image."""


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
    looking = request.goal == "check" or request.dry_run
    with (
        open_machine(request.place, request.options, writing=not looking) as machine,
        TemporaryDirectory(prefix="oci2boot-") as scratch,
    ):
        with machine.state() as state:
            tracked = state.tracked
        again = request_again(tracked, machine.store, Path(scratch), request.given, request.authfile)
        news = _news(again, machine.store, str(tracked.manifest))
        if not news.changed:
            return Upgraded("up to date", news, tracked)
        if state.rejected(news.manifest):
            return Upgraded("rejected", news, tracked)
        if looking:
            planned = _planned(machine, state.mode, news, tracked.name) if request.goal == "deploy" else None
            return planned or Upgraded("available", news, tracked)
        return _deploy(request, machine, convert(again, report), news, report)


def switch(request: UpgradeRequest, wanted: ConvertRequest, report: Report) -> Upgraded:
    """Bring the machine to another image; from then on it is upgraded from there.

    For a slot it is made as the one before, except its source and name.
    """
    with (
        open_machine(request.place, request.options, writing=not request.dry_run) as machine,
        TemporaryDirectory(prefix="oci2boot-") as scratch,
    ):
        with machine.state() as state:
            if state.mode == "verity":
                again = request_again(state.tracked, machine.store, Path(scratch), request.given, request.authfile)
                wanted = replace(again, source=wanted.source, name=wanted.name)
        if request.dry_run:
            news = _news(wanted, machine.store, None)
            return _planned(machine, state.mode, news) or Upgraded("available", news)
        return _deploy(request, machine, convert(wanted, report), None, report)


def reboot_into(place: Place, done: Upgraded, *, soft: bool = False) -> None:
    """Restart this machine if something new was deployed; with `soft`, all of it but the kernel."""
    if done.outcome != "deployed" or done.bootable is None:
        return
    if soft and isinstance(place, Sysroot):
        soft_reboot(place, done.bootable.composefs.image)
    else:
        run(["systemctl", "reboot"], package="systemd")


def _deploy(
    request: UpgradeRequest, machine: Machine, bootable: Bootable, news: News | None, report: Report
) -> Upgraded:
    if request.goal == "download":
        return Upgraded("downloaded", news, bootable)
    with Repository.open(machine.store) as repository:
        plan = machine.deploy(repository, bootable, report)
    if plan is None:
        report(Told("this is the image that boots next already"))
        return Upgraded("up to date", news, bootable)
    for text in machine.tidy():
        report(Told(text))
    return Upgraded("deployed", news, bootable, plan)


def _planned(machine: Machine, mode: Mode, news: News, name: str | None = None) -> Upgraded | None:
    """Plan what is in the store already; `name` is what it has to be called there."""
    with _opened(machine.store) as repository:
        for one in saved_images(repository):
            known = one.manifest and str(one.manifest) == news.manifest and one.mode == mode
            if known and name in (None, one.name):
                return Upgraded("planned", news, one, machine.plan(repository, one))
    return None


def _news(request: ConvertRequest, store: Path, known: str | None) -> News:
    """Ask the source; only the manifest and config are fetched."""
    if isinstance(request.source, DirectoryReference):
        return News(str(request.source), changed=True, manifest=None)
    with open_source(request.source, request.options) as source, _opened(store) as repository:
        image = source.fetch()
        manifest = str(image.manifest_digest)
        lacking = [layer for layer in image.layers if not has_layer(repository, layer.diff_id)]
    sizes = {layer.digest: layer.size for layer in lacking}
    return News(
        str(request.source), changed=manifest != known, manifest=manifest, layers=len(sizes), bytes=sum(sizes.values())
    )


@contextmanager
def _opened(store: Path) -> Iterator[Repository]:
    """Give the store, or an empty one that is gone afterwards: looking writes nothing."""
    if (store / "meta.json").exists():
        with Repository.open(store) as repository:
            yield repository
    else:
        with TemporaryDirectory(prefix="oci2boot-") as folder, Repository.ensure(Path(folder, "composefs")) as empty:
            yield empty
