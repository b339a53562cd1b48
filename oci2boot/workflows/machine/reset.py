"""Factory reset: the same images, and /etc and /var as on the first day."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import StoreError, TargetError
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.repository import Repository
from oci2boot.sysroot.deployments import DeployedState, record_bytes
from oci2boot.sysroot.etc_upper import write_upper
from oci2boot.sysroot.machine import Sysroot, changing
from oci2boot.sysroot.physical import deployment_state, initial_var
from oci2boot.sysroot.state import SysrootState, read_state
from oci2boot.system.files import exchange, plain_errors, sync_directory
from oci2boot.tree.model import Directory
from oci2boot.workflows.machine.repair import repair_locked
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import BootOptions

OLD: Final = "state/old"
"""What a running machine still uses until it restarts, by the id of its boot."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Reset:
    deployments: tuple[VerityDigest, ...]
    """That have a new state."""
    skipped: tuple[VerityDigest, ...]
    """Of other tools, which know what they keep there."""

    def to_json(self) -> dict[str, Any]:
        return {
            "deployments": [digest.hex for digest in self.deployments],
            "skipped": [digest.hex for digest in self.skipped],
        }


def reset(sysroot: Sysroot, given: BootOptions, report: Report, *, full: bool, dry_run: bool = False) -> Reset:
    """Give every deployment an /etc without changes, and the machine the /var of the image that boots next.

    `full` first reads every object, and fetches again what is broken. A running machine keeps what it has until it
    restarts.
    """
    if dry_run:
        return _plan(read_state(sysroot))[1]
    with changing(sysroot):
        if full and (problems := repair_locked(sysroot, given, report).problems):
            raise StoreError(f"the content is not whole: {problems[0]}", hint="install the machine again")
        remove_old(sysroot)
        state = read_state(sysroot)
        ours, made = _plan(state)
        base = state.next or state.current
        with Repository.open(sysroot.repository) as repository:
            for one in ours:
                assert one.record is not None
                tree = read_rootfs(repository.read_object(one.digest))
                record = record_bytes(one.record, deployed=one.deployed, pinned=one.pinned, tool=one.tool)
                _replace(sysroot, sysroot.deployments / one.digest.hex, deployment_state(record, tree), repository)
            if base is None:
                raise TargetError("nothing says which image's /var the machine must have")
            tree = read_rootfs(repository.read_object(base.digest))
            _replace(sysroot, sysroot.var, initial_var(tree), repository)
    for digest in made.skipped:
        report(Warned(f"{digest} was deployed by another program, and keeps its state"))
    report(Told("restart the machine now" if sysroot.live else "the state is new"))
    return made


def _plan(state: SysrootState) -> tuple[Sequence[DeployedState], Reset]:
    ours = [one for one in state.deployments if one.record is not None]
    if not ours:
        raise TargetError("no deployment of ours is here")
    others = tuple(one.digest for one in state.deployments if one.record is None)
    return ours, Reset(tuple(one.digest for one in ours), others)


def _replace(sysroot: Sysroot, path: Path, tree: Directory, repository: Repository) -> None:
    """Put a new directory in the place of one that may be mounted, which goes aside."""

    def place(content: External) -> Path:
        return repository.object_path(content.digest)

    fresh = path.with_name(f".{path.name}.fresh")
    with plain_errors(TargetError, f"reset {path}"):
        if fresh.exists():
            shutil.rmtree(fresh)
        write_upper(tree, fresh, place)
        if not path.exists():
            fresh.rename(path)
        else:
            exchange(fresh, path)
            if sysroot.live:
                old = sysroot.root / OLD / BOOT_ID.read_text().strip()
                old.mkdir(parents=True, exist_ok=True)
                fresh.rename(old / f"{len(list(old.iterdir()))}")
            else:
                shutil.rmtree(fresh)
        sync_directory(path.parent)


def remove_old(sysroot: Sysroot) -> None:
    """Remove what was set aside in earlier boots."""
    this = BOOT_ID.read_text().strip() if sysroot.live else ""
    old = sysroot.root / OLD
    with plain_errors(TargetError, f"clean up {old}"):
        for folder in old.iterdir() if old.is_dir() else ():
            if folder.name != this:
                shutil.rmtree(folder)
