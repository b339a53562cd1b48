"""Garbage of a machine: what neither a boot entry, nor a deployment, nor a reference needs."""

from collections.abc import Set as AbstractSet
from pathlib import Path

from oci2boot.digest import VerityDigest
from oci2boot.errors import TargetError
from oci2boot.store import reach
from oci2boot.store.reach import GarbagePlan
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootDirectory, read_boot_directory
from oci2boot.sysroot.deployments import read_deployments
from oci2boot.sysroot.machine import Sysroot, changing

NAMED = 3


def collect_garbage(
    repo: Path, *, dry_run: bool, sysroot: Sysroot | None = None, esp: Path | None = None
) -> GarbagePlan:
    """Remove what nothing keeps: of a machine, with all that its boot directory promises as roots.

    A boot directory of which any part cannot be read stops it: what that part needs would be lost.
    """
    if sysroot is None:
        with Repository.open(repo) as repository:
            return _collect(repository, promised_by(read_boot_directory(esp)) if esp else frozenset(), dry_run=dry_run)
    if dry_run:
        with Repository.open(repo) as repository:
            return _collect(repository, machine_roots(sysroot), dry_run=True)
    with changing(sysroot), Repository.open(repo) as repository:
        return _collect(repository, machine_roots(sysroot), dry_run=False)


def machine_roots(sysroot: Sysroot) -> frozenset[VerityDigest]:
    """Return the rootfs images that boot entries promise and deployments have state of."""
    promised = promised_by(read_boot_directory(sysroot.boot_directory()))
    return promised | {one.digest for one in read_deployments(sysroot)}


def promised_by(directory: BootDirectory) -> frozenset[VerityDigest]:
    if directory.unreadable:
        shown = ", ".join(directory.unreadable[:NAMED])
        raise TargetError(
            f"garbage cannot be told from what is needed: {shown} on {directory.path} cannot be read",
            hint="repair or remove it; `oci2boot status` says what is wrong",
        )
    return frozenset(argument.digest for found in directory.promises.values() for argument in found)


def _collect(repository: Repository, roots: AbstractSet[VerityDigest], *, dry_run: bool) -> GarbagePlan:
    # A boot directory may be shared: what it promises for another repository is not in this one.
    here = {digest for digest in roots if repository.has_object(digest)}
    return reach.plan_collection(repository, here) if dry_run else reach.collect(repository, here)
