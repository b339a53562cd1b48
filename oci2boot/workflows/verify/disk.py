"""Is it intact? A disk, a mounted root or a store, read from the partition table down to each Merkle tree.

Nothing is mounted, started or written. What is found wrong is a check that failed; only a target that cannot be read
at all is an error.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import Error, FormatError, TargetError
from oci2boot.formats.erofs.structs import IMAGE_MAX, ComposefsHeader
from oci2boot.formats.fsverity import measure
from oci2boot.formats.splitstream import SplitStream
from oci2boot.formats.tar import printable
from oci2boot.formats.x509 import Certificate
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store import fsck, reach
from oci2boot.store.images import Bootable
from oci2boot.store.repository import MAX_READ, Repository
from oci2boot.sysroot.deployments import RECORD_MAX
from oci2boot.sysroot.layout import RECORD
from oci2boot.system.files import read_limited
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.luks import Secret
from oci2boot.target.opened import EncryptedError, OpenedDisk, as_raw, open_disk
from oci2boot.tree.diff import first_of
from oci2boot.tree.model import Directory, File, walk
from oci2boot.workflows.keys.signing import read_trusted
from oci2boot.workflows.progress import Report, Step
from oci2boot.workflows.verify.checks import NAMED_MAX, Check, Checks
from oci2boot.workflows.verify.compare import compare_root
from oci2boot.workflows.verify.dm_verity import check_verity_disk
from oci2boot.workflows.verify.esp import (
    EspFiles,
    check_installed,
    check_signatures,
    check_ukis,
    esp_of_directory,
    esp_of_fat,
)
from oci2boot.workflows.verify.iso import check_iso
from oci2boot.workflows.verify.manifest import Manifest, read_manifest

META_MAX: Final = 1 << 16
WORKERS: Final = 2
PHYSICAL_ROOT: Final = "physical root"
_BATCH: Final = 64
"""Objects that a worker takes at a time."""
_STEP: Final = 4 << 20
"""Bytes from one report of progress to the next."""


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    target: Path
    """A disk image or block device; the physical root of a machine as a directory; a repository."""
    esp: Path | None = None
    """The directory with the files of the EFI system partition, where the target has none of its own."""
    against: Path | None = None
    """A manifest that the root file system has to equal."""
    db: tuple[Path, ...] = ()
    """Certificates that the firmware trusts."""
    secret: Secret | None = None
    """Opens the root partition, where it is encrypted."""


@dataclass(frozen=True, slots=True)
class Verified:
    target: Path
    kind: str
    checks: tuple[Check, ...]
    complete: bool = True
    """The root file system was read."""

    @property
    def ok(self) -> bool:
        return self.complete and all(check.state != "failed" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": str(self.target),
            "kind": self.kind,
            "ok": self.ok,
            "complete": self.complete,
            "checks": [check.to_json() for check in self.checks],
        }


@dataclass(frozen=True, slots=True)
class _Found:
    """What the store of a target holds."""

    trees: dict[VerityDigest, Directory] = field(default_factory=dict)
    """Every rootfs image that can be read."""
    damaged: dict[VerityDigest, str] = field(default_factory=dict)
    """What is wrong with the others."""
    records: list[Bootable] = field(default_factory=list)
    encrypted: bool = False
    """Nothing opened it, and all else is unknown."""


def verify(request: VerifyRequest, report: Report) -> Verified:
    """Check everything that can be checked, and say of each thing how it stands."""
    trusted = read_trusted(list(request.db))
    manifest = read_manifest(request.against) if request.against else None
    checks = Checks()
    esp: EspFiles | None = None
    if not request.target.is_dir():
        kind = "disk"
        with as_raw(request.target) as raw, open_disk(raw, secret=request.secret) as disk:
            _check_table(disk, checks)
            esp = _check_esp(disk, checks)
            if check_iso(disk, checks):
                kind = "live ISO"
            if disk.has_erofs:
                roots = check_verity_disk(disk, esp or {}, trusted, checks, report)
                if esp is not None:
                    check_installed(esp, roots.records, checks)
                    check_signatures(esp, trusted, checks)
                if manifest:
                    compare_root(disk, roots.found, manifest, checks)
                return Verified(request.target, kind, tuple(checks.made))
            found = _check_disk(disk, checks, report)
            _check_boot(esp, found, trusted, checks)
    else:
        kind, repository = _directory_kind(request.target)
        found = _check_repository(repository, checks, report)
        if request.esp:
            esp = esp_of_directory(request.esp)
            _check_boot(esp, found, trusted, checks)
        elif kind == PHYSICAL_ROOT:
            checks.unchecked("boot files", "the directory with them was not named: --esp DIR")
    if manifest:
        _check_manifest(manifest, found, checks)
    return Verified(request.target, kind, tuple(checks.made), complete=not found.encrypted)


def _directory_kind(target: Path) -> tuple[str, Path]:
    for kind, repository in (("repository", target), (PHYSICAL_ROOT, target / "composefs")):
        if (repository / "meta.json").is_file():
            return kind, repository
    raise TargetError(
        f"{target} holds no composefs repository",
        hint="name a disk image, a repository, or a directory with composefs/ and state/",
    )


def _check_boot(esp: EspFiles | None, found: _Found, trusted: Sequence[Certificate], checks: Checks) -> None:
    if esp is None:
        return
    if found.encrypted:
        check_ukis(esp, None, checks)
        checks.unchecked("boot files", "the record of what was installed is encrypted")
    else:
        check_ukis(esp, {**dict.fromkeys(found.trees), **found.damaged}, checks)
        check_installed(esp, found.records, checks)
    check_signatures(esp, trusted, checks)


# A repository in a directory


def _check_repository(path: Path, checks: Checks, report: Report) -> _Found:
    found = _Found()
    with Repository.open(path) as repository:
        checked = fsck.check(repository, lambda done, total: report(Step("objects", done, total, unit="items")))
        counts = f"{checked.objects} objects, {checked.streams} streams, {checked.images} images"
        report(Step("objects", checked.objects, checked.objects, unit="items", finished=True, note="read"))
        held = "each held to its name by the kernel too" if repository.secure else "without fs-verity in the kernel"
        checks.each([("repository", problem) for problem in checked.problems], "repository", f"{counts}, {held}")
        for digest in reach.named(repository, "images").values():
            try:
                found.trees[digest] = read_rootfs(repository.read_object(digest, IMAGE_MAX))
            except Error as error:
                found.damaged[digest] = f"cannot be used: {error.message}"
    state = path.parent / "state/deploy"
    if state.is_dir():
        for record in sorted(state.glob(f"*/{RECORD.decode()}")):
            with checks.attempt(f"record {record.parent.name}"):
                found.records.append(Bootable.parse(read_limited(record, RECORD_MAX, TargetError)))
        _name_the_unverified([folder.name for folder in sorted(state.iterdir())], checks)
    return found


def _name_the_unverified(deployments: Sequence[str], checks: Checks) -> None:
    shown = ", ".join(name[:12] for name in deployments) or "none"
    checks.unchecked("/etc", f"what the machine changed there is written and read unverified (deployments: {shown})")
    checks.unchecked("/var", "it belongs to the machine, and is written and read unverified")


# A disk


def _check_table(disk: OpenedDisk, checks: Checks) -> None:
    table = disk.gpt
    checks.verdict(
        "partition table", table.problems, f"GPT {table.guid}, {len(table.partitions)} partitions, both copies"
    )


def _check_esp(disk: OpenedDisk, checks: Checks) -> EspFiles | None:
    with checks.attempt("EFI system partition"):
        fat = disk.esp()
        esp = esp_of_fat(fat)
        problems = [] if fat.copies_agree else ["its two allocation tables differ"]
        checks.verdict("EFI system partition", problems, f"FAT, {len(esp)} files")
        return esp
    return None


def _check_disk(disk: OpenedDisk, checks: Checks, report: Report) -> _Found:
    found = _Found()
    with checks.attempt("root file system"):
        try:
            fs = disk.root()
        except EncryptedError as error:
            checks.unchecked("root file system", f"{error.message}; {error.hint}")
            return _Found(encrypted=True)
        root = InstalledRoot(fs)
        checks.ok("root file system", f"ext4 of {fs.superblock.blocks_count} blocks of {fs.block_size} bytes")
        with checks.attempt("repository"):
            objects, images = root.objects(), root.images()
            checks.verdict(
                "repository", _repository_problems(root, images), f"{len(objects)} objects, {len(images)} images"
            )
            for digest in images.values():
                _check_image(root, objects, digest, found, checks)
            _check_streams(root, objects, checks)
            _check_objects(root, objects, found, checks, report)
        with checks.attempt("state"):
            _read_state(root, found, checks)
    return found


def _repository_problems(root: InstalledRoot, images: Mapping[str, VerityDigest]) -> list[str]:
    number = root.find(b"/composefs/meta.json")
    if number is None:
        return ["/composefs/meta.json is missing"]
    if not images:
        return ["it has no rootfs image"]
    algorithm = next(iter(images.values())).algorithm
    meta = measure(root.content(number, META_MAX), algorithm)
    problems = root.object_problems(number, meta, None, lambda _: None)
    return [
        *(f"meta.json: {problem}" for problem in problems),
        *(f"images/{name} links to another image, {digest}" for name, digest in images.items() if name != digest.hex),
    ]


def _check_image(
    root: InstalledRoot, objects: Mapping[VerityDigest, int], digest: VerityDigest, found: _Found, checks: Checks
) -> None:
    name = f"rootfs image {digest}"
    try:
        if digest not in objects:
            raise FormatError("is missing")
        problems = root.object_problems(objects[digest], digest, None, lambda _: None)
        if problems:
            raise FormatError(f"is damaged: {'; '.join(problems)}")
        image = root.content(objects[digest], IMAGE_MAX)
        tree = found.trees[digest] = read_rootfs(image)
    except Error as error:
        found.damaged[digest] = error.message
        checks.failed(name, f"it {error.message}" if error.message.startswith("is ") else error.message)
        return
    version = ComposefsHeader.unpack(image).composefs_version
    inodes = len({id(inode) for _, inode in walk(tree)})
    checks.ok(name, f"EROFS format V{version}, {len(image)} bytes, {inodes} inodes, fs-verity in place")


def _check_streams(root: InstalledRoot, objects: Mapping[VerityDigest, int], checks: Checks) -> None:
    """See that everything is there which the layers and records of the images name."""
    failures, streams = [], root.streams()
    for name, digest in streams.items():
        try:
            stream = SplitStream.unpack(root.object(digest, MAX_READ))
            gone = {*stream.objects, *stream.named.values()} - objects.keys()
            failures += [(f"stream {name}", f"object {one} is missing") for one in sorted(gone, key=str)[:1]]
        except Error as error:
            failures.append((f"stream {name}", error.message))
    checks.each(failures, "streams", f"{len(streams)} streams, with every object that they name")


def _check_objects(
    root: InstalledRoot, objects: Mapping[VerityDigest, int], found: _Found, checks: Checks, report: Report
) -> None:
    """Read every object of the repository, needed or not, and see that all that are needed are there."""
    needed: dict[VerityDigest, tuple[int, bytes]] = {}
    for tree in found.trees.values():
        for path, inode in walk(tree):
            if isinstance(inode, File) and isinstance(inode.content, External):
                needed.setdefault(inode.content.digest, (inode.content.size, path))
    images = found.trees.keys() | found.damaged.keys()
    todo = sorted(((number, digest) for digest, number in objects.items() if digest not in images))
    total = sum(root.size(number) for number, _ in todo)
    done, told, lock = 0, 0, Lock()

    def progress(count: int) -> None:
        nonlocal done, told
        with lock:
            done += count
            if done - told >= _STEP:
                told = done
                report(Step("objects", done, total))

    def check(batch: Sequence[tuple[int, VerityDigest]]) -> list[tuple[VerityDigest, str]]:
        failures = []
        for number, digest in batch:
            size = needed[digest][0] if digest in needed else None
            try:
                problems = root.object_problems(number, digest, size, progress)
            except Error as error:
                problems = [error.message]
            if problems:
                failures.append((digest, "; ".join(problems)))
        return failures

    with ThreadPoolExecutor(WORKERS) as pool:
        batches = [todo[at : at + _BATCH] for at in range(0, len(todo), _BATCH)]
        failures = [failure for batch in pool.map(check, batches) for failure in batch]
    failures += [(digest, "it is missing") for digest in sorted(needed.keys() - objects.keys(), key=str)]
    report(Step("objects", total, total, finished=True, note=f"{len(todo)} read"))

    def shown(digest: VerityDigest, problem: str) -> tuple[str, str]:
        where = f"; it is the content of {printable(needed[digest][1])}" if digest in needed else ""
        return f"object {digest}", problem + where

    evidence = f"{len(todo)} objects, {total / 2**20:.1f} MiB: content, fs-verity flag, Merkle tree and descriptor"
    checks.each([shown(*failure) for failure in failures], "objects", evidence)


def _read_state(root: InstalledRoot, found: _Found, checks: Checks) -> None:
    deployments = sorted(name.decode(errors="replace") for name in root.listing(b"/state/deploy"))
    for name in deployments:
        number = root.find(b"/state/deploy/" + name.encode() + b"/" + RECORD)
        if number is not None:
            with checks.attempt(f"record {name}"):
                found.records.append(Bootable.parse(root.content(number, RECORD_MAX)))
    _name_the_unverified(deployments, checks)


# A manifest


def _check_manifest(manifest: Manifest, found: _Found, checks: Checks) -> None:
    """Compare the rootfs image that the manifest names, or else the one that is there instead, path by path."""
    if not found.trees:
        checks.failed("manifest", "there is no rootfs image to compare with")
        return
    here = manifest.rootfs if manifest.rootfs in found.trees else min(found.trees, key=str)
    first, more = first_of(manifest.differences(found.trees[here]), NAMED_MAX)
    for one in first:
        checks.failed(f"manifest {one.path}", f"{one.field}: {one.a} in the manifest, {one.b} here")
    if more:
        checks.failed("manifest", f"{more} more differences")
    checks.verdict(
        "manifest digest",
        [] if here == manifest.rootfs else [f"the rootfs image is {here}, the manifest is of {manifest.rootfs}"],
        f"{manifest.rootfs}, {len(manifest.paths)} paths",
    )
