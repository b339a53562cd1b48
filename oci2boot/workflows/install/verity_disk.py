"""What goes onto a disk whose root file system is under dm-verity: its partitions, and what the machine may write."""

from oci2boot.digest import VerityDigest
from oci2boot.errors import StoreError
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.sysroot.deployments import record_bytes
from oci2boot.sysroot.first_boot import FirstBoot, upper_directories
from oci2boot.sysroot.physical import Recorded, overlay_state
from oci2boot.target.entries import FileSource, RootEntry
from oci2boot.target.images import Image, Part, VerityParts, plain_image, verity_images
from oci2boot.target.plan import derive_uuid
from oci2boot.tree.selinux import load_policy
from oci2boot.workflows.install.physical import NOTHING, entries_of
from oci2boot.workflows.make.canonical import reader


def image_partitions(
    repository: Repository, bootable: Bootable, root: DmVerityRoot, seed: bytes, verity_size: int | None
) -> list[Image]:
    """Return the partitions that are only read; `verity_size` is what that of the hash tree is to have, in bytes."""
    image = _part(repository, root.image, root.data_size)
    area = root.hash_area
    if root.root_hash is None or area is None:
        if verity_size is not None:
            raise StoreError(
                f"{bootable.name} was converted without dm-verity, and a size is given for its hash tree",
                hint="leave out --verity-partition-size",
            )
        return [plain_image(image, bootable.architecture, derive_uuid(seed, "root"))]
    signature = root.signature_object
    given = VerityParts(
        image,
        root.root_hash,
        _part(repository, area.digest, area.size),
        _part(repository, signature, None) if signature else None,
    )
    return verity_images(
        given,
        bootable.architecture,
        derive_uuid(seed, "root hash signature"),
        embedded=root.place == "embedded",
        verity_size=verity_size,
    )


def state_entries(
    repository: Repository, bootable: Bootable, root: DmVerityRoot, settings: FirstBoot
) -> list[RootEntry] | None:
    """Return the inodes of the partition that the machine writes to; None for a machine that keeps nothing."""
    tree = read_rootfs(repository.read_object(bootable.root.tree))
    places = [overlay.path for overlay in root.overlays if overlay.kept == "persistent"]
    uppers = {}
    if settings != NOTHING:
        read = reader(lambda content: repository.read_object(content.digest))
        uppers = upper_directories(settings, tree, load_policy(tree, read), read, places)
    if not places:
        return None
    document = record_bytes(bootable.to_json(), deployed=None)
    return list(entries_of(repository, overlay_state(Recorded(root.image, document), tree, places, uppers)))


def _part(repository: Repository, digest: VerityDigest, size: int | None) -> Part:
    """Return an object as content of a partition, of the size that is promised."""
    path = repository.object_path(digest)
    if not path.is_file():
        raise StoreError(f"object {digest} is missing from {repository.path}", hint="run `oci2boot fsck`")
    return Part(FileSource.of(path) if size is None else FileSource(path, size), digest)
