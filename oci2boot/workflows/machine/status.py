"""What a machine runs, what it boots next, and what else it keeps: as text and as JSON by a published schema."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from oci2boot.boot.names import MAX_UKI
from oci2boot.errors import Error
from oci2boot.formats import authenticode, pe
from oci2boot.store.images import Bootable, saved_images
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.sysroot.bootdir import BootEntry, mapped
from oci2boot.workflows.machine.demands import label_of, remembered_outcome
from oci2boot.workflows.machine.model import Deployment, MachineState
from oci2boot.workflows.machine.place import Place, open_machine

VERSION: Final = 1
"""Of the schema, `schema/status.json` in the package: keys are added under it, none changes its meaning."""


@dataclass(frozen=True, slots=True)
class Status:
    state: MachineState
    signers: dict[str, list[str]]
    """By path on the ESP: who signed a UKI, and holds to it."""
    versions: dict[str, str]
    """By path on the ESP: the IMAGE_VERSION of an entry that has one, by which an older image is known."""
    downloaded: tuple[Bootable, ...]
    """Images that are in the machine's store and not deployed."""
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        state = self.state
        deployed = {entry.path for one in state.deployments for entry in one.entries}
        return {
            "version": VERSION,
            "mode": state.mode,
            **state.facts,
            "esp": str(state.esp) if state.esp else None,
            "live": state.live,
            "booted": state.booted,
            "next": state.next.id if state.next else None,
            "deployments": [self._deployment(one) for one in state.deployments],
            "other_entries": [_entry(entry) for entry in state.directory.entries if entry.path not in deployed],
            "downloaded": [{"image": image.name, "digest": image.root.image.hex} for image in self.downloaded],
            "problems": list(self.problems),
        }

    def _deployment(self, one: Deployment) -> dict[str, Any]:
        record = one.record or {}
        return {
            "id": one.id,
            **one.facts,
            "states": self.state.states_of(one),
            "pinned": one.pinned,
            "image": record.get("name"),
            "source": record.get("source"),
            "manifest": record.get("manifest"),
            "title": one.title,
            "kernel": record.get("kernel"),
            "flow": record.get("flow"),
            "outcome": _outcome(record),
            "deployed": moment(one.deployed),
            "tool": one.tool,
            "entries": [
                {
                    **_entry(entry),
                    "signers": self.signers.get(entry.path, []),
                    "image_version": self.versions.get(entry.path),
                }
                for entry in one.entries
            ],
        }


def _outcome(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the next image must be no less than; None where an older version did not say it."""
    known = remembered_outcome(record.get("options") or {})
    if known is None:
        return None
    return {
        "kind": known.kind,
        "signed_by": list(dict.fromkeys(one.subject for one in (*known.signers, *known.addon))),
        "given_up": str(known.before) if known.before else None,
    }


def moment(seconds: int | None) -> str | None:
    """Return a time as RFC 3339 has it; a clock may have been anywhere."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, OSError, ValueError):
        return None


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


def read_status(place: Place) -> Status:
    with open_machine(place, writing=False) as machine, machine.state() as state:
        problems = list(state.problems)
        signers: dict[str, list[str]] = {}
        versions: dict[str, str] = {}
        for entry in (entry for one in state.deployments for entry in one.entries):
            try:
                if entry.kind == "uki":
                    signers[entry.path] = _signers(state.directory.path / entry.path)
                if version := label_of(state.directory.path / entry.path, entry.path).version:
                    versions[entry.path] = version
            except Error as error:
                problems.append(f"{entry.path}: {error.message}")
        # A disk image has no store of its own.
        here = state.live or state.mode == "composefs"
        downloaded = tuple(_downloaded(machine.store, {one.id for one in state.deployments})) if here else ()
    for one in state.deployments:
        if not one.whole:
            problems.append(f"deployment {one.id}: its rootfs image is not in the repository")
        if not one.entries:
            problems.append(f"deployment {one.id}: no boot entry starts it")
    return Status(state, signers, versions, downloaded, tuple(problems))


def _downloaded(store: Path, deployed: Container[str]) -> Iterator[Bootable]:
    if (store / "meta.json").exists():
        with Repository.open(store) as repository:
            for image in saved_images(repository):
                root = image.root
                if (str(root.root_hash) if isinstance(root, DmVerityRoot) else root.image.hex) not in deployed:
                    yield image


def _signers(path: Path) -> list[str]:
    with mapped(path, MAX_UKI) as data:
        if not pe.parse(data).signed:
            return []
        return [signature.signer.subject for signature in authenticode.verify(bytes(data), [])]
