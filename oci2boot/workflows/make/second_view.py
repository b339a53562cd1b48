"""The second view of an image: its layers unpacked on a disk by other code, which must come to the same digest."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from oci2boot.digest import Hash, OciDigest, VerityDigest
from oci2boot.errors import DigestError
from oci2boot.formats import fsverity
from oci2boot.formats.pieces import Pieces
from oci2boot.oci.unpacked import UnpackedView
from oci2boot.rootfs.composefs import Rootfs, build_rootfs
from oci2boot.store.layers import layer_tar
from oci2boot.store.repository import Repository
from oci2boot.tree.diff import compare, describe
from oci2boot.tree.model import Directory
from oci2boot.workflows.make.canonical import Read, canonical_tree
from oci2boot.workflows.progress import Report, Step
from oci2boot.workflows.requests import TreeOptions

LARGE: Final = "/var/tmp"  # noqa: S108  # a fresh directory is made in it
"""For large files that may be lost at a reboot. hier(7)."""
NAMED: Final = 5


def check_unpacked(
    repository: Repository,
    diff_ids: Sequence[OciDigest],
    tree: Directory,
    rootfs: Rootfs,
    rules: TreeOptions,
    read: Read,
    report: Report,
) -> None:
    """Unpack the stored layers and compute the digest again; `DigestError` names where the unpacked files differ.

    `tree` is the canonical tree of the merged layers, `rootfs` its image.
    """
    task = "unpacked view"
    with tempfile.TemporaryDirectory(prefix="oci2boot-", dir=os.environ.get("TMPDIR", LARGE)) as folder:
        view = UnpackedView(Path(folder))
        for number, diff_id in enumerate(diff_ids, 1):
            view.apply(Pieces(layer_tar(repository, diff_id)))
            report(Step(task, number, len(diff_ids), unit="layers"))
        unpacked = canonical_tree(view.tree(_measurer(repository.algorithm)), rules, read, lambda _: None)
    found = build_rootfs(unpacked, rootfs.version, repository.algorithm).digest
    if found != rootfs.digest:
        differences = list(compare(describe(tree, repository.algorithm), describe(unpacked, repository.algorithm)))
        shown = "; ".join(
            f"{one.path}: {one.field} is {one.a} in the layers, {one.b} unpacked" for one in differences[:NAMED]
        )
        more = f" and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
        raise DigestError(
            f"the image is not one thing: {shown}{more}",
            hint="a layer of it can be read in two ways: build that layer again",
        )
    report(Step(task, len(diff_ids), len(diff_ids), unit="layers", finished=True, note="same digest"))


def _measurer(algorithm: Hash) -> Callable[[Iterator[bytes]], VerityDigest]:
    def keep(pieces: Iterator[bytes]) -> VerityDigest:
        hasher = fsverity.Hasher(algorithm)
        for piece in pieces:
            hasher.update(piece)
        return hasher.digest()

    return keep
