"""The rootfs image that an image brings along, taken in place of one made here.

It is data until its fs-verity digest is the promised one. That digest stands for every byte, SELinux labels included,
so these are not computed again. Whether the promise is still of these layers is seen by a look at both trees; where
they disagree nothing is taken, and the digest of the layers decides.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from oci2boot.boot.uki_layer import list_shipped, read_shipped
from oci2boot.digest import External, VerityDigest
from oci2boot.errors import Error, StoreError
from oci2boot.formats.erofs.reader import ErofsImage
from oci2boot.rootfs.composefs import Rootfs
from oci2boot.rootfs.inodes import Version
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.repository import Repository
from oci2boot.tree.diff import same_but_labels
from oci2boot.tree.files import show
from oci2boot.tree.model import Directory, File, walk
from oci2boot.tree.prepare import Xattrs, prepare_for_boot
from oci2boot.workflows.make.unpack import Unpacked, object_reader
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import TreeOptions

VERSIONS: Final[dict[int, Version]] = {0: 0, 1: 1, 2: 2}
MAX_NAMED: Final = 3
XATTRS: Final[tuple[Xattrs, ...]] = ("allowlist-only", "keep-user")


class Shipped:
    """What an image has in /boot/composefs, by the digest that a UKI promises."""

    def __init__(self, unpacked: Unpacked, asked: TreeOptions, repository: Repository, report: Report) -> None:
        self._unpacked = unpacked
        self._asked = asked
        self._repository = repository
        self._report = report
        self._taken: dict[VerityDigest, tuple[Rootfs, TreeOptions] | None] = {}

    def find(self, digest: VerityDigest) -> tuple[Rootfs, TreeOptions] | None:
        """Return the image of this digest and the rules it was made by, as far as they can be seen.

        None where none came along, or one of another tree than the layers make. `DigestError` for one that has not
        the digest in its name, `StoreError` for one whose files are not all in the store.
        """
        if digest not in self._taken:
            self._taken[digest] = self._find(digest)
        return self._taken[digest]

    def _find(self, digest: VerityDigest) -> tuple[Rootfs, TreeOptions] | None:
        # The layers' contents are named by the store's hash: by the other one nothing here can be compared.
        if not self._asked.bootable or digest.algorithm != self._repository.algorithm:
            return None
        image = read_shipped(self._unpacked.tree, object_reader(self._repository), digest)
        if image is None:
            return None
        try:
            erofs = ErofsImage(image)
            tree = _read(image)
        except Error:  # what cannot be read is not this tree, and the digest of the layers says so
            return None
        version = VERSIONS[erofs.version]
        xattrs = self._agrees(tree, version)
        if xattrs is None:
            return None
        self._check_objects(tree, digest)
        rootfs = Rootfs(image, digest, version, erofs.superblock.inos)
        return rootfs, replace(self._asked, erofs_version=version, xattrs=xattrs)

    def _agrees(self, tree: Directory, version: Version) -> Xattrs | None:
        """Return which attributes count in `tree`; None where it is not that of the layers."""
        for xattrs in dict.fromkeys((self._asked.xattrs, *XATTRS)):
            layers = prepare_for_boot(self._unpacked.system, _ignore, xattrs)
            if same_but_labels(tree, layers, whole_seconds=version == 2):
                return xattrs
        return None

    def _check_objects(self, tree: Directory, digest: VerityDigest) -> None:
        for path, content in _objects(tree):
            if not self._repository.has_object(content.digest):
                raise StoreError(
                    f"the rootfs image {digest} has /{show(path)} from object {content.digest}, which the store lacks",
                    hint="`oci2boot fsck` names what is broken",
                )

    def tell(self, used: VerityDigest) -> bool:
        """Say where the rootfs image is from, and whether it came along."""
        if self._taken.get(used):
            self._report(Told(f"took the rootfs image that came along: it has the promised digest {used}"))
            return True
        # What is named by the other hash may well be of this tree.
        names = [name for name in list_shipped(self._unpacked.tree) if len(name) == len(used.hex)]
        if used.hex in names:
            if read_shipped(self._unpacked.tree, object_reader(self._repository), used) is not None:
                self._report(Told("the rootfs image that came along is the one made here"))
        elif names:
            shown = ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" * (len(names) > MAX_NAMED))
            self._report(Warned(f"the rootfs image that came along is of another tree, {shown}: one was made here"))
        return False


def _objects(tree: Directory) -> Iterator[tuple[bytes, External]]:
    for path, inode in walk(tree):
        if isinstance(inode, File) and isinstance(inode.content, External):
            yield path, inode.content


def _read(image: bytes) -> Directory:
    """Read the tree without the collector, which would take half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return read_rootfs(image)
    finally:
        if collecting:
            gc.enable()


def _ignore(_: object) -> None:
    pass
