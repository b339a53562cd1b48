"""Why do two digests differ? By the rules that made them, or by a path and a field. B.3."""

import re
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Final, Literal, get_args

from oci2boot.boot.names import MAX_UKI
from oci2boot.digest import OTHER_HASH, External, Hash, OciDigest, VerityDigest
from oci2boot.errors import Error, FormatError, SourceError
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.formats.erofs.structs import COMPOSEFS_MAGIC, IMAGE_MAX, ComposefsHeader
from oci2boot.formats.fsverity import measure
from oci2boot.oci.manifest import Manifest, parse_config, parse_document
from oci2boot.oci.reference import DirectoryReference, DumpfileReference, Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable
from oci2boot.store.layers import read_layer
from oci2boot.store.repository import Repository
from oci2boot.system.files import plain_errors, read_limited
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import open_disk
from oci2boot.tree.diff import Difference, compare, describe, first_of
from oci2boot.tree.dumpfile import parse_dumpfile
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory, File, walk
from oci2boot.tree.prepare import Xattrs
from oci2boot.workflows.images import list_images
from oci2boot.workflows.make.canonical import reader
from oci2boot.workflows.make.digest import gather, read_dumpfile
from oci2boot.workflows.make.directory import EXACT
from oci2boot.workflows.make.rules import AS_IT_STANDS, VERSIONS, Mtime, Rules, Selinux, Workbench
from oci2boot.workflows.make.unpack import object_reader, renamer
from oci2boot.workflows.progress import Report, Step, Warned
from oci2boot.workflows.sources import parse_source
from oci2boot.workflows.verify.esp import find_ukis

Verdict = Literal["equal", "rules", "content", "unknown"]

_HEX: Final = re.compile(r"[0-9A-Fa-f]{32,}")
"""Meant as a digest, even if it is none."""


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    a: str
    b: str
    repo: Path
    """Where names of converted images are looked up."""
    options: SourceOptions = field(default_factory=SourceOptions)
    limit: int = 20
    """Differences that are shown; the others are counted."""


@dataclass(frozen=True, slots=True)
class Side:
    name: str
    kind: str
    digests: tuple[VerityDigest, ...]
    """What it is, or promises: several of a disk with several images, or a UKI with several arguments."""
    bench: Workbench | None = None
    """Its tree, where it has one."""

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "kind": self.kind, "digests": [str(digest) for digest in self.digests]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    a: Side
    b: Side
    verdict: Verdict
    rules: tuple[tuple[str, str, str], ...] = ()
    """(rule, of a, of b): the tree is the same, these made its digests differ."""
    differences: tuple[Difference, ...] = ()
    more: int = 0
    tried: int = 0
    """Rule sets."""

    def to_json(self) -> dict[str, object]:
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "verdict": self.verdict,
            "rules": [{"rule": rule, "a": a, "b": b} for rule, a, b in self.rules],
            "differences": [difference.to_json() for difference in self.differences],
            "more_differences": self.more,
            "rule_sets_tried": self.tried,
        }


def explain(request: ExplainRequest, report: Report) -> Explained:
    with ExitStack() as stack:
        opener = _Opener(request, report, stack)
        fixed = [opener.fixed(request.a), opener.fixed(request.b)]
        # What is not computed yet uses the hash of what is known.
        known = [digest.algorithm for side in fixed if side for digest in side.digests]
        algorithm: Hash = known[0] if known else "sha256"
        a, b = (
            side or opener.computed(text, algorithm) for text, side in zip((request.a, request.b), fixed, strict=True)
        )
        return _explain(a, b, request.limit, report)


def _explain(a: Side, b: Side, limit: int, report: Report) -> Explained:
    if set(a.digests) & set(b.digests):
        return Explained(a=a, b=b, verdict="equal")
    if not a.bench and not b.bench:
        raise SourceError(
            "two digests, and no tree that either could be of",
            hint="name an image, a directory, a dump file or a disk as one of the two",
        )
    tried = 0

    def count(_: Rules) -> None:
        nonlocal tried
        tried += 1
        report(Step("rule sets", tried, unit="items"))

    rules: list[tuple[str, str, str]] | None = None
    if a.bench and (found := a.bench.search(b.digests, count)):
        rules = a.bench.own.differences(found)
    elif b.bench and (found := b.bench.search(a.digests, count)):
        rules = found.differences(b.bench.own)
    report(Step("rule sets", tried, tried, unit="items", finished=True, note=f"{tried} tried"))
    if rules is not None:
        return Explained(a=a, b=b, verdict="rules", rules=tuple(rules), tried=tried)
    if not a.bench or not b.bench:
        return Explained(a=a, b=b, verdict="unknown", tried=tried)
    one, other = a.bench.own, b.bench.own
    algorithm = one.hash if one.hash == other.hash else None
    differences = compare(describe(a.bench.tree(one), algorithm), describe(b.bench.tree(other), algorithm))
    first, more = first_of(differences, limit)
    return Explained(a=a, b=b, verdict="content", differences=tuple(first), more=more, tried=tried)


class _Opener:
    """Turns what the user named into a side; stores and disks stay open until the end of `stack`."""

    def __init__(self, request: ExplainRequest, report: Report, stack: ExitStack) -> None:
        self._request = request
        self._report = report
        self._stack = stack

    def fixed(self, text: str) -> Side | None:
        """Return what has a digest already; None for what is a tree only."""
        if text.startswith(("composefs=", "composefs.digest=")):
            return Side(text, "kernel argument", (ComposefsArg.parse(text).digest,))
        if _HEX.fullmatch(text):
            return Side(text, "digest", (VerityDigest.parse(text),))
        for bootable in list_images(self._request.repo):
            if bootable.name == text:
                return self._converted(bootable)
        path = Path(text)
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):
            return None
        if stat.S_ISBLK(mode):
            return self._disk(path)
        return self._file(path) if stat.S_ISREG(mode) else None

    def computed(self, text: str, algorithm: Hash) -> Side:
        reference = parse_source(text)
        if isinstance(reference, DumpfileReference):
            return _dumpfile(text, read_dumpfile(reference.path), algorithm)
        return self._source(text, reference, algorithm)

    def _source(self, text: str, reference: Reference, algorithm: Hash) -> Side:
        gathered = gather(reference, algorithm, self._request.options, self._report, times=EXACT)
        # A directory counts as its layers would: with nanoseconds it is one of the forms that are tried.
        mtime: Mtime = "seconds" if isinstance(reference, DirectoryReference) else "nanoseconds"
        bench = Workbench(gathered.tree, Rules(hash=algorithm, mtime=mtime), gathered.read)
        return Side(text, "source", (bench.digest(bench.own),), bench)

    def _file(self, path: Path) -> Side | None:
        with plain_errors(SourceError, f"read {path}"), path.open("rb") as file:
            head = file.read(1024)
        if head[:4] == COMPOSEFS_MAGIC.to_bytes(4, "little"):
            return _rootfs_image(str(path), read_limited(path, IMAGE_MAX))
        if head[:2] == b"MZ":
            return _uki(path)
        return self._disk(path) if head[512:520] == b"EFI PART" else None

    def _disk(self, path: Path) -> Side:
        disk = self._stack.enter_context(open_disk(path))
        if disk.has_erofs:
            raise FormatError(
                f"the root file system of {path} is EROFS that fills a partition, under dm-verity",
                hint="`oci2boot verify` checks it; explain the images that the disks were made from",
            )
        root = InstalledRoot(disk.root())
        digests = tuple(root.images().values())
        if not digests:
            raise SourceError(f"{path} has no rootfs image")
        side = _rootfs_image(str(path), root.object(digests[0], IMAGE_MAX))

        def read(content: External) -> bytes:
            return root.object(content.digest, content.size)

        assert side.bench
        own = replace(side.bench.own, hash=digests[0].algorithm)
        tree = side.bench.tree(side.bench.own)
        return Side(str(path), "disk", digests, Workbench(tree, own, reader(read)))

    def _converted(self, bootable: Bootable) -> Side:
        repository = self._stack.enter_context(Repository.open(self._request.repo))
        rename = renamer(repository)
        read = object_reader(repository)
        own = _own_rules(bootable, repository.algorithm)
        if bootable.manifest:
            merged = _merged(repository, bootable.manifest, lambda text: self._report(Warned(text)))
            bench = Workbench(merged, own, read, rename)
        else:
            tree = read_rootfs(repository.read_object(bootable.root.tree, IMAGE_MAX))
            own = replace(AS_IT_STANDS, hash=own.hash, erofs_version=own.erofs_version)
            bench = Workbench(tree, own, read, rename)
        return Side(bootable.name, "converted image", (bootable.root.tree,), bench)


def _own_rules(bootable: Bootable, algorithm: Hash) -> Rules:
    selinux: list[Selinux] = ["libselinux", "composefs-rs"]
    for version, xattrs, labels in product(VERSIONS, get_args(Xattrs), selinux):
        if (version, xattrs, labels) == (bootable.root.erofs_version, bootable.xattrs, bootable.selinux_rules):
            return Rules(erofs_version=version, hash=algorithm, xattrs=xattrs, selinux=labels)
    raise FormatError(f"{bootable.name} was converted by rules that are not known here")


def _merged(repository: Repository, manifest: OciDigest, warn: Callable[[str], None]) -> Directory:
    """Return the tree of a stored image's layers."""
    name = f"oci-manifest-{manifest}"
    document = parse_document(_document(repository, name), None, name)
    if not isinstance(document, Manifest):
        raise FormatError(f"{name} is not that of one image")
    config = f"oci-config-{document.config.digest}"
    diff_ids = parse_config(_document(repository, config), config).diff_ids
    return merge((list(read_layer(repository, diff_id)) for diff_id in diff_ids), warn)


def _document(repository: Repository, stream: str) -> bytes:
    return repository.read_object(repository.read_stream(stream).sole_object())


def _rootfs_image(name: str, image: bytes) -> Side:
    tree = read_rootfs(image)
    hashes = {
        inode.content.digest.algorithm
        for _, inode in walk(tree)
        if isinstance(inode, File) and isinstance(inode.content, External)
    }
    # An image that refers to nothing may be meant by either hash.
    digests = tuple(measure(image, algorithm) for algorithm in sorted(hashes or OTHER_HASH))
    (version,) = (version for version in VERSIONS if version == ComposefsHeader.unpack(image).composefs_version)
    bench = Workbench(tree, replace(AS_IT_STANDS, erofs_version=version, hash=digests[0].algorithm))
    return Side(name, "rootfs image", digests, bench)


def _dumpfile(name: str, data: bytes, algorithm: Hash) -> Side:
    try:
        tree = parse_dumpfile(data, algorithm)
    except FormatError as error:
        algorithm = OTHER_HASH[algorithm]
        try:
            tree = parse_dumpfile(data, algorithm)
        except FormatError:
            raise error from None
    bench = Workbench(tree, replace(AS_IT_STANDS, hash=algorithm))
    return Side(name, "dump file", (bench.digest(bench.own),), bench)


def _uki(path: Path) -> Side:
    for _, uki in find_ukis({path.name + ".efi": lambda: read_limited(path, MAX_UKI)}):
        if isinstance(uki, Error):
            raise uki
        digests = dict.fromkeys(argument.digest for argument in uki.about_composefs)
        if digests:
            return Side(str(path), "UKI", tuple(digests))
        raise FormatError(
            f"{path} promises no composefs image",
            hint="`oci2boot uki inspect` shows its command line; a root hash stands for a partition under dm-verity",
        )
    raise FormatError(f"{path} is an EFI program, and no UKI")
