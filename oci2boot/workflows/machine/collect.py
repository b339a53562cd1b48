"""Garbage of a machine: what neither a boot entry, nor a deployment, nor a reference needs."""

from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from pathlib import Path

from oci2boot.digest import VerityDigest
from oci2boot.errors import TargetError
from oci2boot.store import reach
from oci2boot.store.content import DEPLOYED
from oci2boot.store.reach import AREAS, GarbagePlan
from oci2boot.store.repository import Repository
from oci2boot.store.transfer import drop_refs
from oci2boot.sysroot.bootdir import BootDirectory, read_boot_directory
from oci2boot.sysroot.deployments import read_deployments, remove_leftovers
from oci2boot.sysroot.machine import Sysroot, changing
from oci2boot.workflows.machine.reset import remove_old

NAMED = 3


def collect_garbage(
    repo: Path, *, dry_run: bool, sysroot: Sysroot | None = None, esp: Path | None = None
) -> GarbagePlan:
    """Remove what nothing keeps: of a machine, with all that its boot directory promises as roots.

    A boot directory that cannot be read in full stops it: what the unread part needs would be lost.
    """
    if sysroot is None:
        with Repository.open(repo) as repository:
            return _collect(repository, promised_by(read_boot_directory(esp)) if esp else frozenset(), dry_run=dry_run)
    with nullcontext() if dry_run else changing(sysroot), Repository.open(repo) as repository:
        if not dry_run:
            remove_old(sysroot)
            remove_leftovers(sysroot)
        return _collect(repository, machine_roots(sysroot), dry_run=dry_run, machine=True)


def machine_roots(sysroot: Sysroot) -> frozenset[VerityDigest]:
    """Return the rootfs images that boot entries promise and deployments have state of."""
    promised = promised_by(read_boot_directory(sysroot.boot_directory()))
    return promised | {one.digest for one in read_deployments(sysroot)}


def stale_refs(repository: Repository, roots: AbstractSet[VerityDigest]) -> tuple[str, ...]:
    """Return references for deployments that are none: a command was stopped before it had made them, or after."""
    known = {digest.hex for digest in roots}
    return tuple(
        f"{area}/refs/{DEPLOYED}/{name}"
        for area in AREAS
        for name, _, _ in repository.refs(area, DEPLOYED)
        if name not in known
    )


def promised_by(directory: BootDirectory) -> frozenset[VerityDigest]:
    if directory.unreadable:
        shown = ", ".join(directory.unreadable[:NAMED])
        raise TargetError(
            f"garbage cannot be told from what is needed: {shown} on {directory.path} cannot be read",
            hint="repair or remove it; `oci2boot status` says what is wrong",
        )
    return frozenset(argument.digest for found in directory.promises.values() for argument in found)


def _collect(
    repository: Repository, roots: AbstractSet[VerityDigest], *, dry_run: bool, machine: bool = False
) -> GarbagePlan:
    # A boot directory may be shared: what it promises for another repository is not in this one.
    here = {digest for digest in roots if repository.has_object(digest)}
    stale = stale_refs(repository, roots) if machine else ()
    if dry_run:
        return reach.plan_collection(repository, here, stale)
    repository.check_writable()
    drop_refs(repository, stale)
    return reach.collect(repository, here)
