"""Deployments: the state directory of each rootfs image that was installed, and the record of it that lies there."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot import __version__
from oci2boot.digest import VerityDigest
from oci2boot.errors import FormatError, TargetError
from oci2boot.sysroot.etc_merged import MergedEtc
from oci2boot.sysroot.machine import Sysroot
from oci2boot.sysroot.physical import RECORD
from oci2boot.system.files import plain_errors, read_limited, sync_directory, write_atomically

RECORD_MAX: Final = 1 << 20
OWN: Final = "deployment"
"""Key of the record for what the machine knows; all else is the image's."""
TOOL: Final = f"oci2boot {__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedState:
    """What the state directory of an installed rootfs image says of it."""

    digest: VerityDigest
    record: Mapping[str, Any] | None
    """The image's boot record as JSON; None for one of another tool."""
    deployed: int | None = None
    """Seconds since 1970, by this machine's clock."""
    pinned: bool = False
    tool: str | None = None
    """What deployed it, and its version; None where that did not say."""
    merged: MergedEtc | None = None
    """None where its /etc is the image's, or was made by a version that did not say how."""


def read_deployments(sysroot: Sysroot) -> list[DeployedState]:
    """Return the deployments, by digest. A record that cannot be read is an error: it may be of a newer version."""
    deployments = []
    with plain_errors(TargetError, f"read {sysroot.deployments}"):
        names = sorted(entry.name for entry in os.scandir(sysroot.deployments)) if sysroot.deployments.is_dir() else []
        for name in names:
            if not name.startswith("."):
                deployments.append(_read(sysroot.deployments / name))
    return deployments


def _read(path: Path) -> DeployedState:
    try:
        digest = VerityDigest.parse(path.name)
    except FormatError as error:
        raise TargetError(
            f"{path} is not the state of a deployment", hint="move it elsewhere if it is yours"
        ) from error
    record = path / os.fsdecode(RECORD)
    if not record.exists():
        return DeployedState(digest=digest, record=None)
    data = read_limited(record, RECORD_MAX, TargetError)
    try:
        facts = json.loads(data)
        own = facts.pop(OWN, {})
        deployed, pinned, tool = own.get("deployed"), own.get("pinned", False), own.get("tool")
        if not isinstance(pinned, bool) or not isinstance(deployed, int | None) or not isinstance(tool, str | None):
            raise ValueError
        if facts["rootfs"] != digest.hex:
            raise ValueError
        merged = MergedEtc.from_json(own["etc"]) if "etc" in own else None
    except (FormatError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TargetError(f"{record} is damaged", hint="install the image again") from error
    return DeployedState(digest=digest, record=facts, deployed=deployed, pinned=pinned, tool=tool, merged=merged)


def record_bytes(
    facts: Mapping[str, Any],
    *,
    deployed: int | None,
    pinned: bool = False,
    tool: str | None = TOOL,
    merged: MergedEtc | None = None,
) -> bytes:
    """Return the record of a deployment; without a time for a disk, which is the same whenever it is made."""
    known: dict[str, Any] = {"deployed": deployed, "pinned": pinned, "tool": tool}
    own = {key: value for key, value in known.items() if value is not None}
    if merged:
        own["etc"] = merged.to_json()
    return json.dumps({**facts, OWN: own}, indent=2, sort_keys=True).encode() + b"\n"


def after(deployments: Iterable[DeployedState]) -> int:
    """Return the time for a new deployment: now, or later than all others where the clock is wrong."""
    return max([int(time.time()), 0, *(1 + (one.deployed or 0) for one in deployments)])


def set_pinned(sysroot: Sysroot, deployment: DeployedState, *, pinned: bool) -> None:
    if deployment.record is None:
        raise TargetError(f"{deployment.digest} was deployed by another program, which does not know of pins")
    path = sysroot.deployments / deployment.digest.hex / os.fsdecode(RECORD)
    with plain_errors(TargetError, f"write {path}"):
        record = record_bytes(
            deployment.record,
            deployed=deployment.deployed,
            pinned=pinned,
            tool=deployment.tool,
            merged=deployment.merged,
        )
        write_atomically(path, record)


def remove_leftovers(sysroot: Sysroot) -> None:
    """Remove what commands that were stopped left among the deployments; the caller is the only one to change them."""
    with plain_errors(TargetError, f"clean {sysroot.deployments}"):
        for path in sysroot.deployments.glob(".*") if sysroot.deployments.is_dir() else ():
            shutil.rmtree(path)


def remove_state(sysroot: Sysroot, digest: VerityDigest) -> None:
    """Remove the state of a deployment; stopped half-way, it is gone already, and the next run removes the rest."""
    path = sysroot.deployments / digest.hex
    gone = path.with_name(f".{digest.hex}.gone")
    with plain_errors(TargetError, f"remove {path}"):
        if gone.exists():
            shutil.rmtree(gone)
        if path.exists():
            path.rename(gone)
            sync_directory(path.parent)
            shutil.rmtree(gone)
