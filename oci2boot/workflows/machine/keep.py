"""Deployments in directories that are there already: which stay, which go."""

from typing import Final

from oci2boot.errors import TargetError
from oci2boot.store.content import DEPLOYED
from oci2boot.store.images import REF, escaped, remove_image
from oci2boot.store.repository import Repository
from oci2boot.store.transfer import drop_refs
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_plan import plan_remove
from oci2boot.sysroot.deployments import DeployedState, remove_state, set_pinned
from oci2boot.sysroot.machine import Sysroot, changing
from oci2boot.sysroot.state import SysrootState, read_state

AREAS: Final = ("streams", "images")


def pin(sysroot: Sysroot, wanted: str, *, pinned: bool) -> DeployedState:
    """Keep a deployment until it is unpinned, whatever needs its place."""
    with changing(sysroot):
        chosen = read_state(sysroot).find(wanted)
        set_pinned(sysroot, chosen, pinned=pinned)
    return chosen


def delete(sysroot: Sysroot, wanted: str, *, dry_run: bool = False) -> DeployedState:
    """Remove a deployment: its boot entries, its references, its state; a collection frees what only it needed."""
    with changing(sysroot):
        state = read_state(sysroot)
        chosen = state.find(wanted)
        if chosen.digest == state.booted:
            raise TargetError(f"{chosen.digest} is what this machine runs", hint="boot another one first")
        if chosen.pinned:
            raise TargetError(f"{chosen.digest} is pinned", hint=f"oci2boot unpin {chosen.digest.hex[:12]}")
        if not dry_run:
            remove(state, chosen)
    return chosen


def retire(sysroot: Sysroot, keep: int) -> list[DeployedState]:
    """Remove the oldest deployments until `keep` are left; what runs, boots next or is pinned stays in any case."""
    state = read_state(sysroot)
    ours = [one for one in state.deployments if one.record is not None]
    safe = [one for one in ours if one.pinned or one.digest == state.booted or one == state.next]
    others = sorted((one for one in ours if one not in safe), key=lambda one: one.deployed or 0)
    gone = others[: max(len(ours) - max(keep, len(safe)), 0)]
    for one in gone:
        remove(state, one)
    return gone


def remove(state: SysrootState, chosen: DeployedState) -> None:
    """Take it away in the order in which each step leaves a machine that is whole."""
    sysroot = state.sysroot
    for entry in state.entries_of(chosen.digest):
        directory = read_boot_directory(sysroot.boot_directory())
        apply_boot(plan_remove(directory, entry.id, keep=state.kept_entries() - {entry.id}), sysroot.boot_directory())
    with Repository.open(sysroot.repository) as repository:
        forget(repository, chosen)
    remove_state(sysroot, chosen.digest)


def forget(repository: Repository, chosen: DeployedState) -> None:
    """Drop what keeps a deployment's content; its image's name too, unless that leads to another version by now."""
    drop_refs(repository, [f"{area}/refs/{DEPLOYED}/{chosen.digest}" for area in AREAS])
    name = (chosen.record or {}).get("name")
    if isinstance(name, str) and repository.ref_target(f"images/refs/{REF}/{escaped(name)}") == chosen.digest.hex:
        remove_image(repository, name)
