"""Where the /etc of a deployment came from: which other one's changes were merged into it, how, and what that made.

So that it can be merged once more before the machine restarts, as long as nobody changed it since.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from oci2boot.digest import VerityDigest
from oci2boot.errors import TargetError
from oci2boot.sysroot.etc import EtcPolicy
from oci2boot.system.files import plain_errors
from oci2boot.tree.diff import describe, text
from oci2boot.tree.model import SELINUX_XATTR, Directory

_NOT_CHANGES: Final = frozenset(("mtime", "mtime nanoseconds", "hard link of", f"xattr {text(SELINUX_XATTR)}"))
"""Fields that a merge does not compare: times, and labels, which a kernel with a policy gives to what has none."""


@dataclass(frozen=True, slots=True)
class MergedEtc:
    """How the upper directory of a deployment was made."""

    origin: VerityDigest
    """The deployment whose upper directory was merged."""
    policy: EtcPolicy
    result: str
    """The fingerprint of what was written."""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Raise `ValueError`, `KeyError`, `TypeError` or a `FormatError` where these are other facts."""
        if not isinstance(facts["result"], str):
            raise TypeError
        return cls(VerityDigest.parse(facts["origin"]), EtcPolicy.parse(tuple(facts["policy"])), facts["result"])

    def to_json(self) -> dict[str, Any]:
        return {"origin": self.origin.hex, "policy": list(self.policy.words), "result": self.result}


def fingerprint(upper: Directory, deployment: VerityDigest) -> str:
    """Return what tells an upper directory of a deployment from one that was changed since, in 64 digits."""
    digest = hashlib.sha256()
    for path, fields in sorted(describe(upper, deployment.algorithm), key=lambda one: one[0]):
        kept = {name: value for name, value in fields.items() if name not in _NOT_CHANGES}
        digest.update(json.dumps([path, kept], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def was_booted(deployment: Path) -> bool:
    """Tell whether the /etc of a deployment was ever mounted: overlayfs then leaves a directory in its `work`."""
    work = deployment / "etc/work"
    with plain_errors(TargetError, f"read {work}"):
        return work.is_dir() and any(work.iterdir())
