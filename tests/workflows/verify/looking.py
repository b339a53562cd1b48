"""A disk, and what is mounted of it, as `verify` sees them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from oci2boot.workflows.progress import silent
from oci2boot.workflows.verify.disk import Verified, VerifyRequest, verify
from tests.workflows.disks import Demo


def seen(target: Path, **options: object) -> Verified:
    return verify(VerifyRequest(target, **options), silent)  # type: ignore[arg-type]


def failures(verified: Verified) -> dict[str, str]:
    return {check.name: check.evidence for check in verified.checks if check.state == "failed"}


def states(verified: Verified) -> dict[str, str]:
    return {check.name: check.state for check in verified.checks}


def on_esp(tmp_path: Path, files: Mapping[str, bytes]) -> Path:
    """Return a directory with boot files, as a mounted ESP is seen."""
    esp = tmp_path / "esp"
    for path, content in files.items():
        (esp / path).parent.mkdir(parents=True, exist_ok=True)
        (esp / path).write_bytes(content)
    return esp


def physical_root(demo: Demo, tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "state/deploy").mkdir(parents=True)
    shutil.copytree(demo.repo, root / "composefs", symlinks=True)
    return root
