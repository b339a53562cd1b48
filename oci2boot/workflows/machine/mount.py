"""A rootfs image of the store as a mounted tree: EROFS for the names, overlayfs for the contents. composefs(1)."""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from oci2boot.digest import VerityDigest
from oci2boot.errors import FormatError, StoreError, TargetError, ToolError
from oci2boot.store.images import find_image
from oci2boot.store.repository import Repository
from oci2boot.system.run import Argv, run

_SPECIAL = re.compile(r"[:,\\\s]")
"""What overlayfs or mount(8) would not take for a part of a path."""


def mount(repo: Path, image: str, target: Path, *, allow_missing_verity: bool = False) -> VerityDigest:
    """Mount a converted image, or a rootfs image by its digest, read-only. The kernel checks what is read of it.

    Only what `images/` names is mounted: a file system of unknown origin could attack the kernel.
    """
    with Repository.open(repo) as repository:
        digest = _find(repository, image)
        # Checked here as well: EROFS parses the image before anyone has compared its digest.
        repository.read_object(digest)
        if not (repository.secure or allow_missing_verity):
            raise StoreError(
                f"{repo} lies on a file system without fs-verity: nothing would be verified",
                hint="--allow-missing-verity mounts it anyway",
            )
        objects, path, secure = (
            (repo / "objects").resolve(),
            repository.object_path(digest).resolve(),
            repository.secure,
        )
    if not target.is_dir():
        raise TargetError(f"{target} is not a directory")
    if _SPECIAL.search(str(objects)):
        raise FormatError(f"overlayfs cannot take the path {str(objects)!r}", hint="move the store")
    if os.geteuid():
        raise ToolError("mounting needs root", hint="run it with sudo")
    metadata = Path(tempfile.mkdtemp(prefix="oci2boot-", dir="/run"))
    try:
        run(erofs_argv(path, metadata), package="mount")
        try:
            run(overlay_argv(metadata, objects, target, secure=secure), package="mount")
        finally:
            # The overlay holds on to it; its name is not needed any more.
            run(["umount", "--lazy", metadata], package="mount")
    finally:
        with suppress(OSError):
            metadata.rmdir()
    return digest


def _find(repository: Repository, image: str) -> VerityDigest:
    try:
        digest = VerityDigest.parse(image)
    except FormatError:
        return find_image(repository, image).root.tree
    if repository.image_digest(digest.hex) != digest:
        raise StoreError(f"{repository.path} has no rootfs image {digest}", hint="`oci2boot images --json` lists them")
    return digest


def erofs_argv(image: Path, target: Path) -> Argv:
    return ["mount", "-t", "erofs", "-o", "ro,nodev,loop", image, target]


def overlay_argv(metadata: Path, objects: Path, target: Path, *, secure: bool) -> Argv:
    """Return the call; `::` makes the objects data only: the metadata alone says which of them are visible."""
    verity = ",verity=require" if secure else ""
    options = f"ro,metacopy=on,redirect_dir=on{verity},lowerdir={metadata}::{objects}"
    return ["mount", "-t", "overlay", "-o", options, "oci2boot", target]
