"""The layer that seals an image: its UKI, in /boot alone, so that the digest in it stays the image's."""

import stat
from collections.abc import Iterator, Sequence
from typing import Final

from oci2boot.boot.discover import MODULES, UKI_DIRECTORY, find_ukis
from oci2boot.boot.names import EXTRA
from oci2boot.boot.sealed import IMAGE_ADDONS, find_addons
from oci2boot.digest import VerityDigest
from oci2boot.errors import DigestError, ImageError
from oci2boot.formats.fsverity import measure
from oci2boot.formats.tar import NO_XATTRS, Entry
from oci2boot.tree.files import Read, list_directory, read_file, show
from oci2boot.tree.model import Directory, Metadata, find, put

SHIPPED: Final = b"boot/composefs"
"""Where a sealed image may have its rootfs image: in /boot, which the digest leaves out."""
MAX_SHIPPED: Final = 1 << 30
KERNEL_FILES: Final = (b"vmlinuz", b"initramfs.img", b"initrd")
_WHITEOUT: Final = b".wh."


def uki_layer(tree: Directory, read: Read, files: Sequence[tuple[bytes, bytes]]) -> list[Entry]:
    """Return the layer's entries: (path, content) over the merged tree, whose own UKIs and their addons go.

    Every directory is there with the metadata that it has: unpacking a layer that leaves one out may change it.
    """
    placed = {path for path, _ in files}
    return _entries(tree, [path for path in _inherited(tree, read) if path not in placed], files)


def kernel_layer(tree: Directory) -> list[Entry]:
    """Return the entries of a layer that removes kernels and their initramfs from /usr; none where there is nothing.

    A layer, and no rule of the digest: everyone sees the same image.
    """
    paths = kernel_files(tree)
    return _entries(tree, paths, []) if paths else []


def kernel_files(tree: Directory) -> list[bytes]:
    """Return the paths in /usr of kernels and their initramfs, which a UKI has in it."""
    paths = []
    for version, _ in list_directory(tree, MODULES):
        folder = find(tree, MODULES + b"/" + version)
        names = folder.entries if isinstance(folder, Directory) else {}
        paths += [MODULES + b"/" + version + b"/" + name for name in KERNEL_FILES if name in names]
    return paths


def without_kernel(tree: Directory) -> Directory:
    for path in kernel_files(tree):
        tree = put(tree, path, None)
    return tree


def _entries(tree: Directory, hidden: Sequence[bytes], files: Sequence[tuple[bytes, bytes]]) -> list[Entry]:
    directories: dict[bytes, Entry] = {}
    for path in sorted([*hidden, *(path for path, _ in files)]):
        names = path.split(b"/")[:-1]
        for depth in range(1, len(names) + 1):
            parent = b"/".join(names[:depth])
            directories[parent] = _directory(tree, parent)
    time = _directory(tree, b"boot")
    return [
        *(entry for _, entry in sorted(directories.items())),
        *(_file(_whiteout(path), b"", time) for path in hidden),
        *(_file(path, content, time) for path, content in files),
    ]


def _inherited(tree: Directory, read: Read) -> Iterator[bytes]:
    """Yield what of the base image would boot something else than this image, or add to its command line."""
    for path in find_ukis(tree):
        if path.startswith(UKI_DIRECTORY + b"/"):
            yield path
            folder = path + EXTRA.encode()
            if find(tree, folder):
                yield folder
    for addon in find_addons(tree, read, IMAGE_ADDONS):
        if addon.promises():
            yield addon.path
    for name, _ in list_directory(tree, SHIPPED):
        yield SHIPPED + b"/" + name


def shipped_path(rootfs: VerityDigest) -> bytes:
    return SHIPPED + b"/" + rootfs.hex.encode() + b".erofs"


def list_shipped(tree: Directory) -> list[str]:
    """Return the names, without their suffix, of the rootfs images that the image brings along."""
    return [show(name.removesuffix(b".erofs")) for name, _ in list_directory(tree, SHIPPED)]


def read_shipped(tree: Directory, read: Read, rootfs: VerityDigest) -> bytes | None:
    """Return the rootfs image that the image brings along, not looked into; `DigestError` where it has another digest.

    None where it brings none of this digest.
    """
    path = shipped_path(rootfs)
    content = read_file(tree, read, path, MAX_SHIPPED)
    if content is not None and (found := measure(content, rootfs.algorithm)) != rootfs:
        raise DigestError(
            f"/{show(path)} was tampered with: promised is {rootfs}, it measures {found}",
            hint="whoever sealed the image has the right one: `oci2boot seal` writes it again",
        )
    return content


def _whiteout(path: bytes) -> bytes:
    parent, _, name = path.rpartition(b"/")
    return parent + b"/" + _WHITEOUT + name


def _directory(tree: Directory, path: bytes) -> Entry:
    found, usr = find(tree, path), find(tree, b"usr")
    if found is not None and not isinstance(found, Directory):
        raise ImageError(f"/{show(path)} of the image is not a directory")
    meta = found.meta if found else Metadata(mode=0o755, mtime=usr.meta.mtime if usr else 0)
    return Entry(
        path, stat.S_IFDIR, meta.mode, meta.uid, meta.gid, meta.mtime, meta.mtime_nsec, meta.xattrs, b"", b"", 0
    )


def _file(path: bytes, content: bytes, time: Entry) -> Entry:
    return Entry(path, stat.S_IFREG, 0o644, 0, 0, time.mtime, 0, NO_XATTRS, content, b"", 0)
