"""A converted image as a subject of checks: its rootfs image, and the programs on its ESP."""

from functools import partial

from oci2boot.boot.names import is_program
from oci2boot.digest import External
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.tree.model import File
from oci2boot.workflows.lint.model import Subject
from oci2boot.workflows.lint.run import check
from oci2boot.workflows.progress import Report
from oci2boot.workflows.requests import Linting


def stored_subject(repository: Repository, bootable: Bootable) -> Subject:
    def read(file: File) -> bytes:
        match file.content:
            case bytes():
                return file.content
            case External(digest=digest):
                return repository.read_object(digest)
        return bytes(file.size)

    root = bootable.root
    return Subject(
        tree=read_rootfs(repository.read_object(root.tree)),
        read=read,
        architecture=bootable.architecture,
        stage="root",
        verity=VerityOptions(overlays=root.overlays) if isinstance(root, DmVerityRoot) else None,
        programs={
            path: partial(repository.read_object, bootable.esp[path]) for path in bootable.esp if is_program(path)
        },
        kernel_version=bootable.kernel,
    )


def check_stored(repository: Repository, bootable: Bootable, linting: Linting | None, report: Report) -> None:
    """Look at an image that is about to be installed; None where that was done just now."""
    if linting is not None:
        for warning in check(stored_subject(repository, bootable), bootable.name, linting, report):
            report(warning)
