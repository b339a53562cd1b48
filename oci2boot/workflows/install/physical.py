"""The root partition of a disk: an image's part of the repository and the state of its deployment, inode by inode."""

import stat
from collections.abc import Iterator
from typing import Final

from oci2boot.digest import External
from oci2boot.errors import StoreError
from oci2boot.formats import fsverity
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.content import deployed_refs, image_content
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository, meta_json
from oci2boot.sysroot.deployments import record_bytes
from oci2boot.sysroot.first_boot import FirstBoot, with_first_boot
from oci2boot.sysroot.physical import Recorded, physical_root
from oci2boot.target.entries import FileSource, RootEntry
from oci2boot.tree.model import Device, Directory, File, Inode, Sparse, Special, Symlink, walk
from oci2boot.tree.selinux import load_policy
from oci2boot.workflows.make.canonical import reader

NOTHING: Final = FirstBoot()
VERIFIED: Final = (b"/composefs/objects/", b"/composefs/meta.json")


def root_entries(repository: Repository, bootable: Bootable, settings: FirstBoot = NOTHING) -> Iterator[RootEntry]:
    """Yield the inodes of the root partition."""
    image = bootable.composefs.image
    tree = read_rootfs(repository.read_object(image))
    content = image_content(repository, bootable.name)
    links = {path: f"../objects/{digest.path}" for path, digest in content.links.items()}
    for ref, target in {**content.refs, **deployed_refs(content, image)}.items():
        links[ref] = "../" * (ref.count("/") - 1) + target
    record = record_bytes(bootable.to_json(), deployed=None)
    upper = var = None
    if settings != NOTHING:
        read = reader(lambda content: repository.read_object(content.digest))
        upper, var = with_first_boot(settings, tree, load_policy(tree, read), read)
    deployment, meta = Recorded(image, record), meta_json(repository.algorithm)
    yield from entries_of(repository, physical_root(deployment, content.externals(), links, meta, tree, upper, var))


def entries_of(repository: Repository, root: Directory) -> Iterator[RootEntry]:
    """Yield the inodes of a partition whose root is `root`."""
    names: dict[int, list[bytes]] = {}
    inodes: dict[int, Inode] = {}
    for path, inode in walk(root):
        names.setdefault(id(inode), []).append(path)
        inodes[id(inode)] = inode
    for key, inode in inodes.items():
        first, *others = names[key]
        yield _entry(repository, first, inode, others)


def _entry(repository: Repository, path: bytes, inode: Inode, links: list[bytes]) -> RootEntry:
    match inode:
        case Directory():
            return RootEntry(path=path, kind=stat.S_IFDIR, meta=inode.meta)
        case File(content=External() as content):
            verity = content.digest if path.startswith(VERIFIED) else None
            source = FileSource(repository.object_path(content.digest), content.size)
            return RootEntry(path=path, kind=stat.S_IFREG, meta=inode.meta, source=source, verity=verity, links=links)
        case File(content=Sparse()):
            raise StoreError(f"{path!r} has no content in the store")
        case File(content=bytes() as data):
            verity = fsverity.measure(data, repository.algorithm) if path.startswith(VERIFIED) else None
            return RootEntry(path=path, kind=stat.S_IFREG, meta=inode.meta, source=data, verity=verity, links=links)
        case Symlink():
            return RootEntry(path=path, kind=stat.S_IFLNK, meta=inode.meta, source=inode.target, links=links)
        case Device():
            return RootEntry(path=path, kind=inode.kind, meta=inode.meta, rdev=inode.rdev, links=links)
        case Special():
            return RootEntry(path=path, kind=inode.kind, meta=inode.meta, links=links)
    raise TypeError(inode)
