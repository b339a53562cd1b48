"""The store's own verbs: list, forget, check."""

from pathlib import Path

from oci2boot.store import fsck, images
from oci2boot.store.fsck import Checked
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.workflows.progress import Report, Step


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
