"""The physical root of an installed machine, as a tree: the composefs repository and the state of deployments.

The places are those that composefs-setup-root and bootc know, so that an image with either boots unchanged:

    /composefs/{meta.json,objects,images,streams}     the repository
    /state/deploy/<digest>/etc/{upper,work}           what the machine changed in /etc
    /state/deploy/<digest>/var -> ../../os/default/var
    /state/os/default/var                             /var of the operating system, shared by its deployments

A machine whose root file system is under dm-verity has a partition of its own for what it writes, with

    /state/overlays/etc/{upper,work}                  what the machine changed in /etc; the same for any other place
    /state/deploy/<digest>/oci2boot.json              what was installed
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import TargetError
from oci2boot.tree.model import SELINUX_XATTR, Directory, File, Inode, Metadata, Symlink, find

RECORD: Final = b"oci2boot.json"
"""What a deployment was made from, beside its state."""


Uppers = Mapping[str, Directory]
"""Upper directories of overlays, by the paths of these."""


@dataclass(frozen=True, slots=True)
class Labels:
    """SELinux contexts of the places on the physical root; None on a machine without a policy."""

    root: bytes | None = None
    """Of the root directory and of what only leads to other places."""
    content: bytes | None = None
    """Of the repository, as /usr."""
    etc: bytes | None = None
    """Of the upper directory of /etc: it becomes the label of /etc itself."""


def labels_of(tree: Directory) -> Labels:
    """Take the contexts from the labelled root file system itself."""

    def label(path: bytes) -> bytes | None:
        inode = find(tree, path)
        return inode.meta.xattrs.get(SELINUX_XATTR) if inode else None

    return Labels(label(b"/"), label(b"/usr"), label(b"/etc"))


@dataclass(frozen=True, slots=True)
class Recorded:
    """A rootfs image to install, and the record of it."""

    digest: VerityDigest
    record: bytes
    """JSON, for `RECORD`."""


def physical_root(
    deployment: Recorded,
    objects: Iterable[External],
    links: Mapping[str, str],
    meta_json: bytes,
    tree: Directory,
    upper: Directory | None = None,
    var: Directory | None = None,
) -> Directory:
    """Return the physical root for one deployment whose root file system is `tree`.

    `objects` are all that the repository must hold, `links` the symbolic links in it by path, references among them;
    `upper` is what the machine has in its /etc, `var` its /var where that is not the image's.
    Times are zero: the place is the same for each machine.
    """
    labels = labels_of(tree)
    places = _Places(labels)
    digits = deployment.digest.hex
    repository: dict[bytes, Inode] = {
        b"meta.json": places.file(meta_json),
        b"objects": _objects(places, objects),
        b"images": _links(places, links, "images"),
        b"streams": _links(places, links, "streams"),
    }
    state: dict[bytes, Inode] = {digits.encode(): deployment_state(deployment.record, tree, upper)}
    return places.state(
        {
            b"composefs": places.content(repository, 0o700),
            b"state": places.state(
                {
                    b"deploy": places.state(state),
                    b"os": places.state({b"default": places.state({b"var": var or initial_var(tree)})}),
                }
            ),
        },
        0o700,  # its set-uid files, and those of deployments, are for nobody to find
    )


def deployment_state(record: bytes, tree: Directory, upper: Directory | None = None) -> Directory:
    """Return the state directory of a deployment of `tree`; `upper` is what the machine has in its /etc."""
    labels = labels_of(tree)
    places = _Places(labels)
    etc = upper or Directory(_like(find(tree, b"/etc"), 0o755, labels.etc), {})
    return places.state(
        {
            b"etc": places.state({b"upper": etc, b"work": places.state({}, 0o755)}),
            b"var": Symlink(_meta(0o777, labels.root), b"../../os/default/var"),
            RECORD: File(_meta(0o644, labels.root), record),
        }
    )


def initial_var(tree: Directory) -> Directory:
    """Return /var of a machine that is new: as the image has it."""
    var = find(tree, b"/var")
    return var if isinstance(var, Directory) else _Places(labels_of(tree)).state({})


def _like(inode: Inode | None, mode: int, label: bytes | None) -> Metadata:
    if isinstance(inode, Directory):
        return inode.meta
    return _meta(mode, label)


def _meta(mode: int, label: bytes | None) -> Metadata:
    return Metadata(mode=mode, xattrs={SELINUX_XATTR: label} if label else {})


@dataclass(frozen=True, slots=True)
class _Places:
    labels: Labels

    def state(self, entries: Mapping[bytes, Inode], mode: int = 0o755) -> Directory:
        return Directory(_meta(mode, self.labels.root), entries)

    def content(self, entries: Mapping[bytes, Inode], mode: int = 0o755) -> Directory:
        return Directory(_meta(mode, self.labels.content), entries)

    def file(self, data: bytes | External) -> File:
        return File(_meta(0o644, self.labels.content), data)

    def link(self, target: str) -> Symlink:
        return Symlink(_meta(0o777, self.labels.content), target.encode())


_Folder = dict[str, "str | _Folder"]


def _objects(places: _Places, objects: Iterable[External]) -> Directory:
    folders: dict[bytes, dict[bytes, Inode]] = {}
    for item in objects:
        folder, name = item.digest.path.encode().split(b"/")
        folders.setdefault(folder, {})[name] = places.file(item)
    return places.content({folder: places.content(entries) for folder, entries in folders.items()})


def _links(places: _Places, links: Mapping[str, str], area: str) -> Directory:
    """Return images/ or streams/ with its links, those below refs/ among them."""
    top: _Folder = {"refs": {}}
    for path, target in links.items():
        first, *folders, name = path.split("/")
        if first == area:
            inner = top
            for folder in folders:
                below = inner.setdefault(folder, {})
                assert isinstance(below, dict)
                inner = below
            inner[name] = target
    return _folder(places, top)


def _folder(places: _Places, folder: _Folder) -> Directory:
    return places.content(
        {
            name.encode(): _folder(places, item) if isinstance(item, dict) else places.link(item)
            for name, item in sorted(folder.items())
        }
    )


def overlay_state(deployment: Recorded, tree: Directory, places: Sequence[str], uppers: Uppers) -> Directory:
    """Return the root of the partition with the upper directories for `places`, directories of `tree` by their paths.

    `uppers` are those that are not empty. An upper directory stands for the place itself: its owner, mode and label
    are the place's. Raises `TargetError` where the image has no such directory.
    """
    at = _Places(labels_of(tree))
    overlays: _Overlays = {}
    for place in places:
        lower = find(tree, place.encode())
        if not isinstance(lower, Directory):
            raise TargetError(
                f"{place} is not a directory of the image, but something must be written there",
                hint="make it in the image, or convert without an overlay for it",
            )
        here = overlays
        for name in place.encode().strip(b"/").split(b"/"):
            inner = here.setdefault(name, {})
            assert isinstance(inner, dict)
            here = inner
        here[b"upper"] = uppers.get(place) or Directory(lower.meta, {})
        here[b"work"] = at.state({}, 0o755)
    record = at.state({RECORD: File(_meta(0o644, at.labels.root), deployment.record)})
    return at.state(
        {
            b"state": at.state(
                {
                    b"deploy": at.state({deployment.digest.hex.encode(): record}),
                    b"overlays": _nested(at, overlays),
                }
            )
        }
    )


_Overlays = dict[bytes, "Directory | _Overlays"]


def _nested(places: _Places, overlays: _Overlays) -> Directory:
    return places.state(
        {name: _nested(places, one) if isinstance(one, dict) else one for name, one in overlays.items()}
    )
