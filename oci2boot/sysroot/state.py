"""What is installed on a machine, and what it boots: state directories and boot entries put together."""

from collections.abc import Iterable
from dataclasses import dataclass

from oci2boot.digest import VerityDigest
from oci2boot.errors import TargetError
from oci2boot.sysroot.bootdir import BootDirectory, BootEntry, read_boot_directory
from oci2boot.sysroot.deployments import DeployedState, read_deployments
from oci2boot.sysroot.machine import Sysroot, booted_digest

ID_MIN = 4
"""Digits of a digest that name a deployment."""


@dataclass(frozen=True, slots=True)
class SysrootState:
    """Read once; plans are made of it."""

    sysroot: Sysroot
    directory: BootDirectory
    deployments: tuple[DeployedState, ...]
    """Those that boot first come first, those without a boot entry last."""
    booted: VerityDigest | None
    """What this machine runs; None for one that is not running."""

    def entries_of(self, digest: VerityDigest) -> list[BootEntry]:
        """Return the boot entries that promise a rootfs image, in the order of the boot loader."""
        return [entry for entry in self.directory.entries if digest in promised((entry,))]

    @property
    def next(self) -> DeployedState | None:
        """What boots if nobody chooses: the first entry of all, where it is one of ours."""
        for entry in self.directory.entries[:1]:
            digests = promised((entry,))
            return next((one for one in self.deployments if one.digest in digests), None)
        return None

    @property
    def current(self) -> DeployedState | None:
        """What runs, or else would boot next: its /etc is what a new deployment starts from."""
        if self.booted is None:
            return self.next
        return next((one for one in self.deployments if one.digest == self.booted), None)

    def kept_entries(self) -> frozenset[str]:
        """Return the ids of boot entries that no plan may remove: what runs or boots next, and what is pinned."""
        current = self.current
        kept = {one.digest for one in self.deployments if one.pinned}
        kept |= {self.booted} if self.booted else set()
        kept |= {current.digest} if current else set()
        return frozenset(entry.id for entry in self.directory.entries if kept & promised((entry,)))

    def find(self, wanted: str) -> DeployedState:
        """Return the deployment whose digest begins so."""
        found = find_id([one.digest.hex for one in self.deployments], wanted)
        return next(one for one in self.deployments if one.digest.hex == found)


def find_id(ids: Iterable[str], wanted: str) -> str:
    """Return the id that begins so, of those that deployments have."""
    if len(wanted) < ID_MIN:
        raise TargetError(
            f"{wanted!r} is too short for a deployment",
            hint=f"name it by {ID_MIN} digits or more, as `oci2boot status` shows them",
        )
    fitting = {one for one in ids if one.startswith(wanted)}
    if len(fitting) != 1:
        raise TargetError(
            f"{'several deployments begin' if fitting else 'no deployment begins'} with {wanted[:128]!r}",
            hint="`oci2boot status` lists them",
        )
    return fitting.pop()


def promised(entries: Iterable[BootEntry]) -> set[VerityDigest]:
    return {argument.digest for entry in entries for argument in entry.arguments}


def read_state(sysroot: Sysroot) -> SysrootState:
    directory = read_boot_directory(sysroot.boot_directory())
    place = {
        argument.digest: number
        for number, entry in reversed(list(enumerate(directory.entries)))
        for argument in entry.arguments
    }
    deployments = sorted(read_deployments(sysroot), key=lambda one: place.get(one.digest, len(directory.entries)))
    return SysrootState(sysroot, directory, tuple(deployments), booted_digest(sysroot))
