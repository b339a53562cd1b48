"""What a machine is to the commands that look after it, whatever guards its files.

Read what is there, plan a deployment, make it, choose what boots next: `deployments` does it for composefs, `slots`
for dm-verity, where a deployment is a set of partitions. `place` finds out which of them a machine is.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from oci2boot.errors import TargetError
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.store.roots import Mode
from oci2boot.sysroot.bootdir import BootDirectory, BootEntry
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.sysroot.state import find_id
from oci2boot.target.slots import Slot
from oci2boot.workflows.progress import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One root file system that is installed, and what boots it."""

    id: str
    """Names it, in hex digits: the digest of its rootfs image, or its root hash."""
    entries: tuple[BootEntry, ...]
    """In the order of the boot loader."""
    record: Mapping[str, Any] | None
    """The image's boot record as JSON; None for one of another tool."""
    title: str | None
    deployed: int | None = None
    """Seconds since 1970, by the machine's clock."""
    tool: str | None = None
    """What deployed it, and its version; None where that did not say."""
    pinned: bool = False
    rejected: bool = False
    """It was rolled back, or did not boot."""
    whole: bool = True
    """Its rootfs image is there."""
    own: bool = True
    """It may be chosen to boot next; False for a slot that another tool wrote."""
    slot: Slot | None = None
    """Its partitions; None where it is a directory."""
    facts: Mapping[str, Any]
    """What `status --json` says of this kind alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """Read once; plans are made of it."""

    mode: Mode
    live: bool
    """This machine, running."""
    esp: Path | None
    """Where its boot directory is mounted."""
    directory: BootDirectory
    deployments: tuple[Deployment, ...]
    """Those that boot first come first, those without a boot entry last."""
    booted: str | None
    """The id of what runs; None for a machine that does not."""
    next: Deployment | None
    """What boots if nobody chooses; None where that is another system."""
    current: Deployment | None
    """What runs, or else what the machine would fall back to."""
    problems: tuple[str, ...]
    facts: Mapping[str, Any]
    """What `status --json` says of this kind alone."""

    @property
    def remembers(self) -> Deployment | None:
        """What has a record of the image that the machine follows: what boots next, or else what runs."""
        return next((one for one in (self.next, self.current) if one and one.record), None)

    @property
    def tracked(self) -> Bootable:
        """Return what the next upgrade is the next version of."""
        if (one := self.remembers) and one.record:
            return Bootable.from_json(one.record)
        raise TargetError(
            "nothing says where this machine's image came from", hint="`oci2boot switch SOURCE` installs one from there"
        )

    def rejected(self, manifest: str | None) -> bool:
        """Tell whether an image is here and was put back: an unattended upgrade would boot it for ever."""
        return manifest is not None and any(
            one.rejected and one.record and one.record.get("manifest") == manifest for one in self.deployments
        )

    def find(self, wanted: str) -> Deployment:
        """Return the deployment whose id begins so."""
        choices = [one for one in self.deployments if one.own]
        found = find_id([one.id for one in choices], wanted)
        return next(one for one in choices if one.id == found)

    def previous(self) -> Deployment:
        """Return what to go back to: what runs if another one is staged, or the latest of the others."""
        choices = [one for one in self.deployments if one.own]
        if self.booted and (self.next is None or self.next.id != self.booted):
            found = [one for one in choices if one.id == self.booted]
        else:
            found = [one for one in choices if one != self.next and any(not entry.bad for entry in one.entries)]
        if not found:
            raise TargetError("there is no other deployment to go back to", hint="`oci2boot status` lists them")
        return max(found, key=lambda one: one.deployed or 0)

    def states_of(self, one: Deployment) -> list[str]:
        """Return what a deployment is; `staged` boots next, `kept` on request."""
        found = []
        if one.id == self.booted:
            found.append("booted")
        if one == self.next:
            found.append("staged" if self.booted and one.id != self.booted else "next")
        if one.pinned:
            found.append("pinned")
        return found or ["kept"]


class DeployPlan(Protocol):
    """All that a deployment takes, as data."""

    @property
    def bootable(self) -> Bootable: ...

    @property
    def boot(self) -> BootPlan: ...

    def to_json(self) -> dict[str, Any]: ...


class Machine(Protocol):
    """A machine that is at hand: to be looked at, or to be changed by this command alone."""

    @property
    def store(self) -> Path:
        """The repository that its images get into."""

    def state(self) -> AbstractContextManager[MachineState]:
        """Give what there is now; the files of the boot directory can be read meanwhile."""

    def plan(self, repository: Repository, bootable: Bootable) -> DeployPlan:
        """Find out everything that must be done; nothing is written."""

    def deploy(self, repository: Repository, bootable: Bootable, report: Report) -> DeployPlan | None:
        """Plan it, and do it; None where this is what boots next already. Stopped at any point, the machine boots what
        it booted before; run again, it completes.
        """

    def change_boot(self, plan: BootPlan) -> None:
        """Make a planned change of the boot directory, such as of what boots next."""

    def tidy(self) -> list[str]:
        """Drop what is needed no more, now that something new is deployed; return what there is to tell of it."""
