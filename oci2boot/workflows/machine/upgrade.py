"""A new image for a machine: the next version of the one that it has, or another one."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from oci2boot.boot.firmware import Firmware
from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import open_source
from oci2boot.store.images import Bootable, saved_images
from oci2boot.store.layers import has_layer
from oci2boot.store.repository import Repository
from oci2boot.store.roots import Mode
from oci2boot.sysroot.machine import Sysroot
from oci2boot.system.efivars import EFIVARS
from oci2boot.system.run import run
from oci2boot.workflows.keys.signing import read_trusted
from oci2boot.workflows.machine.demands import Allowed, Demands, demands_of
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.firmware import check_firmware, read_firmware
from oci2boot.workflows.machine.model import DeployPlan, Machine, MachineState
from oci2boot.workflows.machine.place import Place, open_machine
from oci2boot.workflows.machine.soft_reboot import soft_reboot
from oci2boot.workflows.make.again import request_again, request_like
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
    allowed: Allowed = field(default_factory=Allowed)
    efivars: Path | None = None
    """The variables of the machine's firmware; by default those of this machine, where it is the one that runs."""
    authfile: Path | None = None
    """Of this one time: where it lies is no property of the image."""

    def firmware(self) -> Firmware | None:
        return read_firmware(self.efivars or (EFIVARS if self.place.live else None))


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
        unsigned = request.allowed.unsealed
        with machine.state() as state:
            tracked = state.tracked
            again = request_again(
                tracked, machine.store, Path(scratch), request.given, request.authfile, unsigned=unsigned
            )
            demands = _demands(request, state, again)
        news = _news(again, machine.store, str(tracked.manifest))
        if not news.changed:
            return Upgraded("up to date", news, tracked)
        if state.rejected(news.manifest):
            return Upgraded("rejected", news, tracked)
        if looking:
            planned = None
            if request.goal == "deploy":
                planned = _planned(request, machine, demands, state.mode, news, report, tracked.name)
            return planned or Upgraded("available", news, tracked)
        return _deploy(request, machine, demands, convert(again, report), news, report)


def switch(request: UpgradeRequest, wanted: ConvertRequest, report: Report, said: Collection[str] = ()) -> Upgraded:
    """Bring the machine to another image; from then on it is upgraded from there.

    It is made as the one before, except what is `said`: fields of `wanted.boot`.
    """
    with (
        open_machine(request.place, request.options, writing=not request.dry_run) as machine,
        TemporaryDirectory(prefix="oci2boot-") as scratch,
    ):
        with machine.state() as state:
            if state.remembers or state.mode == "verity":
                wanted = request_like(state.tracked, wanted, said, machine.store, Path(scratch))
            demands = _demands(request, state, wanted, same_image=False)
        if request.dry_run:
            news = _news(wanted, machine.store, None)
            return _planned(request, machine, demands, state.mode, news, report) or Upgraded("available", news)
        return _deploy(request, machine, demands, convert(wanted, report), None, report)


def reboot_into(place: Place, done: Upgraded, *, soft: bool = False) -> None:
    """Restart this machine if something new was deployed; with `soft`, all of it but the kernel."""
    if done.outcome != "deployed" or done.bootable is None:
        return
    if soft and isinstance(place, Sysroot):
        soft_reboot(place, done.bootable.composefs.image)
    else:
        run(["systemctl", "reboot"], package="systemd")


def _demands(
    request: UpgradeRequest, state: MachineState, wanted: ConvertRequest, *, same_image: bool = True
) -> Demands:
    trusted = read_trusted(list(wanted.boot.db)) if wanted.boot else []
    return demands_of(state, trusted, request.allowed, same_image=same_image)


def _deploy(
    request: UpgradeRequest,
    machine: Machine,
    demands: Demands,
    bootable: Bootable,
    news: News | None,
    report: Report,
) -> Upgraded:
    if request.goal == "download":
        return Upgraded("downloaded", news, bootable)
    with Repository.open(machine.store) as repository:
        bootable = demands.met_by(repository, bootable, report)
        if firmware := request.firmware():
            check_firmware(firmware, machine.plan(repository, bootable), repository, report)
        plan = machine.deploy(repository, bootable, report)
    if plan is None:
        report(Told("this is the image that boots next already"))
        return Upgraded("up to date", news, bootable)
    for text in machine.tidy():
        report(Told(text))
    return Upgraded("deployed", news, bootable, plan)


def _planned(
    request: UpgradeRequest,
    machine: Machine,
    demands: Demands,
    mode: Mode,
    news: News,
    report: Report,
    name: str | None = None,
) -> Upgraded | None:
    """Plan what is in the store already; `name` is what it has to be called there."""
    with _opened(machine.store) as repository:
        for one in saved_images(repository):
            known = one.manifest and str(one.manifest) == news.manifest and one.mode == mode
            if known and name in (None, one.name):
                one = demands.met_by(repository, one, report)
                plan = machine.plan(repository, one)
                if firmware := request.firmware():
                    check_firmware(firmware, plan, repository, report)
                return Upgraded("planned", news, one, plan)
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
