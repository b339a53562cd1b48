"""Is a root partition what a measurement manifest describes? By the root hash, and file by file."""

import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from oci2boot.errors import ToolError
from oci2boot.system.files import plain_errors
from oci2boot.target.opened import OpenedDisk
from oci2boot.tree.diff import TYPES, compare, first_of
from oci2boot.workflows.verify.checks import NAMED_MAX, Checks
from oci2boot.workflows.verify.dm_verity import Root
from oci2boot.workflows.verify.erofs_files import files_in, fsck_is_missing, run_fsck
from oci2boot.workflows.verify.manifest import PLAIN_HASH, Manifest

_COMPARED: Final = ("type", "size", PLAIN_HASH, "target")
_DEVICES: Final = (TYPES[stat.S_IFCHR], TYPES[stat.S_IFBLK])


def compare_root(disk: OpenedDisk, roots: Sequence[Root], manifest: Manifest, checks: Checks) -> None:
    """Compare the root file system that the manifest names, or else the one that is there instead."""
    promised = manifest.root_hash
    if promised is None:
        problems = ["the manifest names no root hash: it is not of an image under dm-verity"]
    elif not any(root.root_hash == promised for root in roots):
        here = ", ".join(str(root.root_hash) for root in roots) or "no root file system that a UKI promises"
        problems = [f"the manifest is of the root hash {promised}, here is {here}"]
    elif not any(root.root_hash == promised and root.intact for root in roots):
        problems = [f"the partition is not what the root hash {promised} stands for"]
    else:
        problems = []
    checks.verdict("manifest root hash", problems, f"{promised}, {len(manifest.paths)} paths")
    if reason := fsck_is_missing():
        checks.unchecked("manifest contents", reason)
        return
    for root in sorted(roots, key=lambda root: root.root_hash != promised)[:1]:
        with checks.attempt("manifest contents"):
            _compare_files(disk, root, manifest, checks)


def _compare_files(disk: OpenedDisk, root: Root, manifest: Manifest, checks: Checks) -> None:
    with plain_errors(ToolError, "read what fsck.erofs wrote"), tempfile.TemporaryDirectory(prefix="oci2boot-") as name:
        folder = Path(name, "root")
        run_fsck(disk.pieces(root.partition, root.size), folder)
        found = sorted(files_in(folder))
        first, more = first_of(compare(_expected(manifest), _without_devices(found)), NAMED_MAX)
    for one in first:
        checks.failed(f"manifest {one.path}", f"{one.field}: {one.a} in the manifest, {one.b} here")
    if more:
        checks.failed("manifest", f"{more} more differences")
    if not first:
        checks.ok("manifest contents", "type, size and content of every file, by fsck.erofs")


def _expected(manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, fields in _without_devices(manifest.paths.items()):
        yield path, {name: fields[name] for name in _COMPARED if name in fields}


def _without_devices(paths: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((path, fields) for path, fields in paths if fields.get("type") not in _DEVICES)
