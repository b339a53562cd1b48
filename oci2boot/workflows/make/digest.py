"""The digest of a tree, with nothing stored: of an image, a directory or a dump file."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.boot.told import DIGEST_FILE, pack_told
from oci2boot.digest import External, Hash, VerityDigest
from oci2boot.errors import SourceError, TargetError
from oci2boot.formats import fsverity
from oci2boot.formats.tar import Entry, read_tar
from oci2boot.oci.manifest import Layer
from oci2boot.oci.reference import DirectoryReference, DumpfileReference, Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.rootfs.composefs import Rootfs, build_rootfs
from oci2boot.store.layers import PIECE, MeasuredTar
from oci2boot.system.files import plain_errors, read_limited, write_atomically
from oci2boot.tree.dumpfile import DUMP_MAX, parse_dumpfile, write_dumpfile
from oci2boot.tree.model import Directory, File, walk
from oci2boot.workflows.make.canonical import RULES, Read, canonical_tree, karg_of, reader
from oci2boot.workflows.make.directory import USUAL, AskedTimes, measuring, read_directory
from oci2boot.workflows.make.layers import each_layer
from oci2boot.workflows.make.unpack import marked_layers, merge_system
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import DigestRequest, KargStyle
from oci2boot.workflows.sources import tell_path

KEPT: Final = (b"etc/selinux/", b"usr/share/selinux/", b"usr/etc/selinux/")
"""What is read besides its digest: the policy."""


@dataclass(frozen=True, slots=True)
class Measured:
    tree: Directory
    rootfs: Rootfs
    request: DigestRequest

    def karg(self, style: KargStyle) -> str:
        return str(karg_of(self.rootfs, style))

    def dumpfile(self) -> bytes:
        return b"".join(write_dumpfile(self.tree))

    def to_json(self) -> dict[str, Any]:
        times = {"times": str(self.request.tree.times)} if isinstance(self.request.source, DirectoryReference) else {}
        return {
            "digest": str(self.rootfs.digest),
            "hash": self.rootfs.digest.algorithm,
            "erofs_version": self.rootfs.version,
            "bootable": self.request.tree.bootable,
            "rules": RULES,
            "selinux_rules": self.request.tree.selinux_rules,
            "xattrs": self.request.tree.xattrs,
            **times,
            "inodes": self.rootfs.inodes,
            "image_size": len(self.rootfs.image),
        }


@dataclass(frozen=True, slots=True)
class Gathered:
    """A source's tree before any rule: its /boot not emptied, nothing labelled."""

    tree: Directory
    read: Read
    """Reads what a policy may consist of."""


def measure(request: DigestRequest, report: Report) -> Measured:
    """Compute a digest. A dump file is taken as it stands; all else goes through the canonical rules."""

    def warn(text: str) -> None:
        report(Warned(text))

    times = AskedTimes.of(request.tree, request.source)
    if isinstance(request.source, DumpfileReference):
        tree = parse_dumpfile(read_dumpfile(request.source.path), request.hash)
    else:
        gathered = gather(request.source, request.hash, request.options, report, request.uki_layer, times)
        tree = canonical_tree(gathered.tree, request.tree, gathered.read, warn)
    return Measured(tree, build_rootfs(tree, request.tree.erofs_version, request.hash), request)


def write_initramfs(measured: Measured, path: Path) -> None:
    """Write what makes an initramfs the promise; something else than a UKI's signature must vouch for it then."""
    archive = pack_told({DIGEST_FILE: f"{measured.rootfs.digest}\n".encode()})
    with plain_errors(TargetError, f"write {path}"):
        write_atomically(path, archive)


def read_dumpfile(path: Path) -> bytes:
    return read_limited(path, DUMP_MAX)


def gather(
    source: Reference,
    algorithm: Hash,
    options: SourceOptions,
    report: Report,
    uki_layer: int | None = None,
    times: AskedTimes = USUAL,
) -> Gathered:
    """Read a directory or the layers of an image; contents are measured by `algorithm` and not stored."""
    tell_path(source, report)
    if isinstance(source, DirectoryReference):
        return _gather_directory(source.path, algorithm, times)
    return _gather_image(source, algorithm, options, report, uki_layer)


def _gather_directory(root: Path, algorithm: Hash, times: AskedTimes) -> Gathered:
    scanned = read_directory(root, times, measuring(algorithm), algorithm)
    return Gathered(scanned, reader(file_reader(root, scanned)))


def file_reader(root: Path, scanned: Directory) -> Callable[[External], bytes]:
    """Return a function that reads a file of a scanned directory again, by its digest."""
    paths = {
        inode.content.digest: path
        for path, inode in walk(scanned)
        if isinstance(inode, File) and isinstance(inode.content, External)
    }

    def read(content: External) -> bytes:
        path = root / os.fsdecode(paths[content.digest][1:])
        with plain_errors(SourceError, f"read {path}"), path.open("rb") as file:
            data = file.read(content.size + 1)
        if fsverity.measure(data, content.digest.algorithm) != content.digest:
            raise SourceError(f"{path} changed while it was read", hint="stop what writes there, and try again")
        return data

    return read


def _gather_image(
    reference: Reference, algorithm: Hash, options: SourceOptions, report: Report, uki_layer: int | None
) -> Gathered:
    kept: dict[VerityDigest, bytes] = {}

    def work(_: Layer, read: Callable[[int], bytes]) -> list[Entry]:
        return list(_measured(read, algorithm, kept))

    def read_kept(content: External) -> bytes:
        if content.digest not in kept:
            raise SourceError(
                "the SELinux policy of the image lies in an unusual place", hint="`convert` reads it there"
            )
        return kept[content.digest]

    def warn(text: str) -> None:
        report(Warned(text))

    with open_source(reference, options) as source:
        image = source.fetch()
        marked = marked_layers(image, uki_layer)
        entries = each_layer(source, image.layers, work, report)
    _, system = merge_system([entries[layer.diff_id] for layer in image.layers], marked, warn)
    return Gathered(system, reader(read_kept))


def _measured(read: Callable[[int], bytes], algorithm: Hash, kept: dict[VerityDigest, bytes]) -> Iterator[Entry]:
    """Yield the entries of a tar, its bodies measured and, except the policy's, dropped."""
    tar = MeasuredTar(read, algorithm)
    for entry in read_tar(tar):
        if isinstance(entry.content, External) and entry.path.startswith(KEPT):
            kept[entry.content.digest] = tar.last
        yield entry
    while tar.take(PIECE):
        pass
