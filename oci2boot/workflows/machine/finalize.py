"""/etc once more, just before the machine restarts: what changed in it since the upgrade goes with it too."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import TargetError
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.repository import Repository
from oci2boot.sysroot.deployments import DeployedState, read_deployments, record_bytes
from oci2boot.sysroot.etc import EtcPlan, EtcPolicy, plan_etc
from oci2boot.sysroot.etc_merged import MergedEtc, fingerprint, was_booted
from oci2boot.sysroot.etc_upper import write_upper
from oci2boot.sysroot.machine import Sysroot, booted_digest, changing
from oci2boot.sysroot.physical import deployment_state
from oci2boot.workflows.machine.etc import image_etc, read_upper
from oci2boot.workflows.progress import Report, Warned


@dataclass(frozen=True, slots=True)
class Finalized:
    """One deployment that has not been booted yet."""

    deployment: VerityDigest
    origin: VerityDigest
    outcome: Literal["merged", "unchanged", "edited", "stopped"]
    """`edited`: somebody wrote into it since it was made. `stopped`: by the policy. Both leave it as it was."""
    etc: EtcPlan | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "deployment": self.deployment.hex,
            "origin": self.origin.hex,
            "outcome": self.outcome,
            "etc": self.etc.to_json() if self.etc else None,
        }


def finalize(
    sysroot: Sysroot, report: Report, policy: EtcPolicy | None = None, *, dry_run: bool = False
) -> tuple[Finalized, ...]:
    """Merge the running deployment's /etc anew into those that were made from it and were never booted.

    On a machine that is not running, into all that were never booted. Without `policy` it is that of the command
    that made them. The boot directory is not looked at: at a shutdown it may be gone.
    """
    with nullcontext() if dry_run else changing(sysroot), Repository.open(sysroot.repository) as repository:
        return tuple(
            _finalize(
                sysroot, repository, one, replace(merged, policy=policy or merged.policy), report, dry_run=dry_run
            )
            for one, merged in _waiting(sysroot)
        )


def check_finalized(found: tuple[Finalized, ...]) -> None:
    """Raise `TargetError` where the policy stopped a merge."""
    for one in found:
        if one.outcome == "stopped" and one.etc:
            try:
                one.etc.check()
            except TargetError as error:
                raise TargetError(
                    f"/etc of {one.deployment.hex[:12]} stays as it was at the upgrade: {error.message}",
                    hint="say who wins: `oci2boot finalize --etc ours`, or theirs, or /etc/GLOB=theirs",
                ) from error


def _waiting(sysroot: Sysroot) -> Iterator[tuple[DeployedState, MergedEtc]]:
    deployments = read_deployments(sysroot)
    booted = booted_digest(sysroot)
    known = {booted} if sysroot.live else {one.digest for one in deployments}
    # In the order in which they were made: one may have been made from another.
    for one in sorted(deployments, key=lambda one: one.deployed or 0):
        fresh = one.digest != booted and not was_booted(sysroot.deployments / one.digest.hex)
        if fresh and one.merged and one.merged.origin in known:
            yield one, one.merged


def _finalize(
    sysroot: Sysroot, repository: Repository, one: DeployedState, merged: MergedEtc, report: Report, *, dry_run: bool
) -> Finalized:
    folder = sysroot.deployments / one.digest.hex
    if fingerprint(read_upper(folder / "etc/upper", one.digest.algorithm).tree, one.digest) != merged.result:
        return Finalized(one.digest, merged.origin, "edited")
    upper = read_upper(sysroot.deployments / merged.origin.hex / "etc/upper", merged.origin.algorithm)
    plan = plan_etc(image_etc(repository, merged.origin), image_etc(repository, one.digest), upper.tree, merged.policy)
    result = fingerprint(plan.upper, one.digest)
    if any(row.decision == "stop" for row in plan.rows):
        return Finalized(one.digest, merged.origin, "stopped", plan)
    if result == merged.result:
        return Finalized(one.digest, merged.origin, "unchanged", plan)
    if not dry_run and one.record:
        for note in upper.notes:
            report(Warned(note))
        made = replace(merged, result=result)
        record = record_bytes(one.record, deployed=one.deployed, pinned=one.pinned, tool=one.tool, merged=made)

        def place(content: External) -> Path:
            return upper.files.get(content.digest) or repository.object_path(content.digest)

        # The record with it: an /etc that does not fit its record would count as edited.
        tree = read_rootfs(repository.read_object(one.digest))
        write_upper(deployment_state(record, tree, plan.upper), folder, place)
    return Finalized(one.digest, merged.origin, "merged", plan)
