"""What a machine runs, what it boots next, and what else it keeps: as text and as JSON by a published schema."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from oci2boot.boot.names import MAX_UKI
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error
from oci2boot.formats import authenticode, pe
from oci2boot.store.images import saved_images
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootEntry, mapped
from oci2boot.sysroot.deployments import Deployment
from oci2boot.sysroot.machine import Sysroot
from oci2boot.sysroot.state import MachineState, promised, read_state

VERSION: Final = 1
"""Of the schema, `schema/status.json` in the package: keys are added under it, none changes its meaning."""


@dataclass(frozen=True, slots=True)
class Status:
    state: MachineState
    secure: bool
    """The kernel holds every object of the repository to its name."""
    signers: dict[str, list[str]]
    """By path on the ESP: who signed a UKI, and holds to it."""
    downloaded: tuple[tuple[str, VerityDigest], ...]
    """Images that are in the repository and not deployed."""
    problems: tuple[str, ...]

    def states_of(self, one: Deployment) -> list[str]:
        """Return what a deployment is; `staged` boots next, `kept` on request."""
        state, found = self.state, []
        if one.digest == state.booted:
            found.append("booted")
        if state.next == one:
            found.append("staged" if state.booted and one.digest != state.booted else "next")
        if one.pinned:
            found.append("pinned")
        return found or ["kept"]

    def to_json(self) -> dict[str, Any]:
        state = self.state
        own = {one.digest for one in state.deployments}
        return {
            "version": VERSION,
            "sysroot": str(state.sysroot.root),
            "esp": str(state.directory.path),
            "live": state.sysroot.live,
            "fsverity": self.secure,
            "booted": state.booted.hex if state.booted else None,
            "next": state.next.digest.hex if state.next else None,
            "deployments": [self._deployment(one) for one in state.deployments],
            "other_entries": [_entry(entry) for entry in state.directory.entries if not promised((entry,)) & own],
            "downloaded": [{"image": name, "digest": digest.hex} for name, digest in self.downloaded],
            "problems": list(self.problems),
        }

    def _deployment(self, one: Deployment) -> dict[str, Any]:
        record = one.record or {}
        entries = self.state.entries_of(one.digest)
        return {
            "digest": one.digest.hex,
            "states": self.states_of(one),
            "pinned": one.pinned,
            "image": record.get("name"),
            "source": record.get("source"),
            "manifest": record.get("manifest"),
            "title": record.get("title"),
            "kernel": record.get("kernel"),
            "flow": record.get("flow"),
            "deployed": moment(one.deployed),
            "tool": one.tool,
            "verity": verity_of(entries),
            "entries": [{**_entry(entry), "signers": self.signers.get(entry.path, [])} for entry in entries],
        }


def moment(seconds: int | None) -> str | None:
    """Return a time as RFC 3339 has it; a clock may have been anywhere."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, OSError, ValueError):
        return None


def verity_of(entries: Sequence[BootEntry]) -> str | None:
    """Return whether the entries insist on fs-verity; None without an entry."""
    arguments = [argument for entry in entries for argument in entry.arguments]
    if not arguments:
        return None
    return "optional" if any(argument.insecure for argument in arguments) else "required"


def _entry(entry: BootEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "path": entry.path,
        "title": entry.title,
        "version": entry.version,
        "tries_left": entry.tries_left,
        "tries_done": entry.tries_done,
        "bad": entry.bad,
    }


def read_status(sysroot: Sysroot) -> Status:
    state = read_state(sysroot)
    problems = list(state.directory.problems)
    signers: dict[str, list[str]] = {}
    deployed = {one.digest for one in state.deployments}
    for entry in state.directory.entries:
        if entry.kind == "uki" and promised((entry,)) & deployed:
            try:
                signers[entry.path] = _signers(state.directory.path / entry.path)
            except Error as error:
                problems.append(f"{entry.path}: {error.message}")
    with Repository.open(sysroot.repository) as repository:
        for one in state.deployments:
            if not repository.has_object(one.digest):
                problems.append(f"deployment {one.digest}: its rootfs image is not in the repository")
            if not state.entries_of(one.digest):
                problems.append(f"deployment {one.digest}: no boot entry starts it")
        downloaded = [(one.name, one.root.image) for one in saved_images(repository) if one.root.image not in deployed]
        secure = repository.secure
    if state.booted and state.booted not in deployed:
        problems.append(f"what runs, {state.booted}, has no state here")
    return Status(state, secure, signers, tuple(downloaded), tuple(problems))


def _signers(path: Path) -> list[str]:
    with mapped(path, MAX_UKI) as data:
        if not pe.parse(data).signed:
            return []
        return [signature.signer.subject for signature in authenticode.verify(bytes(data), [])]
