"""The store: where it is, and its own verbs: list, forget, check."""

import os
from pathlib import Path

from oci2boot.errors import Error
from oci2boot.store import fsck, images
from oci2boot.store.fsck import Checked
from oci2boot.store.images import Bootable
from oci2boot.store.reach import GarbagePlan
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot, Mode
from oci2boot.workflows.progress import Report, Step

__all__ = [
    "Bootable",
    "Checked",
    "DmVerityRoot",
    "GarbagePlan",
    "Mode",
    "check_store",
    "default_repo",
    "forget",
    "image_names",
    "list_images",
    "writable_repo",
]


def default_repo(*, writing: bool = False) -> Path:
    """Return the store where none is named: the machine's own, else one in the user's data directory.

    A running machine keeps its own read-only: new images get there by `upgrade` and `switch` alone. XDG base directory
    specification, `XDG_DATA_HOME`.
    """
    booted = Path("/sysroot/composefs")
    if os.access(booted / "meta.json", os.R_OK) and (not writing or os.access(booted, os.W_OK)):
        return booted
    data = os.environ.get("XDG_DATA_HOME", "")
    home = Path(data) if data.startswith("/") else Path.home() / ".local/share"
    return home / "oci2boot/repo"


def writable_repo() -> Path:
    return default_repo(writing=True)


def list_images(repo: Path) -> list[Bootable]:
    """Return the converted images, the last one first; none where there is no store yet."""
    if not (repo / "meta.json").exists():
        return []
    with Repository.open(repo) as repository:
        return list(images.saved_images(repository))


def forget(repo: Path, name: str) -> None:
    with Repository.open(repo) as repository:
        images.remove_image(repository, name)


def check_store(repo: Path, report: Report) -> Checked:
    with Repository.open(repo) as repository:
        return fsck.check(repository, lambda done, total: report(Step("objects", done, total, unit="items")))


def image_names(incomplete: str) -> list[str]:
    """Return the names of converted images that begin so, for the shell."""
    named = os.environ.get("OCI2BOOT_REPO")
    try:
        found = list_images(Path(named) if named else default_repo())
    except Error:
        return []
    return [image.name for image in found if image.name.startswith(incomplete)]
