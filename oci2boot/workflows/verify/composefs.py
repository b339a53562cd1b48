"""A root file system of composefs: are its images and every object in the repository what their names say?"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import EncryptedError, Error, TargetError
from oci2boot.formats.erofs.structs import IMAGE_MAX, ComposefsHeader
from oci2boot.formats.fsverity import measure
from oci2boot.formats.splitstream import SplitStream
from oci2boot.formats.tar import printable
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store import fsck, reach
from oci2boot.store.repository import MAX_READ, Repository
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import OpenedDisk
from oci2boot.tree.model import Directory, File, walk
from oci2boot.workflows.progress import Report, Step
from oci2boot.workflows.verify.checks import Checks
from oci2boot.workflows.verify.contents import Contents, Root, State, read_mounted_state, read_state
from oci2boot.workflows.verify.esp import EspFiles, esp_of_directory
from oci2boot.workflows.verify.manifest import Manifest
from oci2boot.workflows.verify.promises import Digest, find_starts

META_MAX: Final = 1 << 16
WORKERS: Final = 2
PHYSICAL_ROOT: Final = "physical root"
PLACES: Final = ("/etc", "/var")
_BATCH: Final = 64
"""Objects that a worker takes at a time."""
_STEP: Final = 4 << 20
"""Bytes from one report of progress to the next."""


_Images = Mapping[VerityDigest, Directory | str]
"""Rootfs images: the tree of each, or what is wrong with it, as in `Root.problem`."""


def _as_roots(images: _Images) -> Mapping[Digest, Root]:
    return {
        digest: Root(intact=False, problem=found, differences=None)
        if isinstance(found, str)
        else Root(intact=True, differences=partial(Manifest.differences, tree=found))
        for digest, found in images.items()
    }


# A directory


def read_directory(target: Path, esp: Path | None, checks: Checks, report: Report) -> Contents:
    """Read a repository, or what is mounted of a machine; `esp` is the directory of its boot files."""
    kind, repository = _directory_kind(target)
    images = _read_repository(repository, checks, report)
    files = esp_of_directory(esp) if esp else None
    if files is None and kind == PHYSICAL_ROOT:
        checks.unchecked("boot files", "the directory with them was not named: --esp DIR")
    return Contents(
        kind=kind,
        mode="composefs",
        esp=files,
        starts=tuple(find_starts(files or {}, "composefs")),
        roots=_as_roots(images),
        state=read_mounted_state(repository.parent, PLACES, checks),
    )


def _directory_kind(target: Path) -> tuple[str, Path]:
    for kind, repository in (("repository", target), (PHYSICAL_ROOT, target / "composefs")):
        if (repository / "meta.json").is_file():
            return kind, repository
    raise TargetError(
        f"{target} holds no composefs repository",
        hint="name a disk image, a repository, or a directory with composefs/ and state/",
    )


def _read_repository(path: Path, checks: Checks, report: Report) -> _Images:
    found: dict[VerityDigest, Directory | str] = {}
    with Repository.open(path) as repository:
        checked = fsck.check(repository, lambda done, total: report(Step("objects", done, total, unit="items")))
        counts = f"{checked.objects} objects, {checked.streams} streams, {checked.images} images"
        report(Step("objects", checked.objects, checked.objects, unit="items", finished=True, note="read"))
        held = "each held to its name by the kernel too" if repository.secure else "without fs-verity in the kernel"
        checks.each([("repository", problem) for problem in checked.problems], "repository", f"{counts}, {held}")
        for digest in reach.named(repository, "images").values():
            try:
                found[digest] = read_rootfs(repository.read_object(digest, IMAGE_MAX))
            except Error as error:
                found[digest] = f"cannot be used: {error.message}"
    return found


# A disk


def read_composefs_disk(disk: OpenedDisk, kind: str, esp: EspFiles | None, checks: Checks, report: Report) -> Contents:
    images: _Images | None = {}
    state = State()
    with checks.attempt("root file system"):
        try:
            fs = disk.root()
        except EncryptedError as error:
            checks.unchecked("root file system", f"{error.message}; {error.hint}")
            images = None
        else:
            checks.ok("root file system", f"ext4 of {fs.superblock.blocks_count} blocks of {fs.block_size} bytes")
            root = InstalledRoot(fs)
            with checks.attempt("repository"):
                objects = root.objects()
                images = _read_images(root, objects, checks)
                _check_streams(root, objects, checks)
                _check_objects(root, objects, images, checks, report)
            with checks.attempt("state"):
                state = read_state(root, PLACES, checks)
    return Contents(
        kind=kind,
        mode="composefs",
        esp=esp,
        starts=tuple(find_starts(esp or {}, "composefs")),
        roots=None if images is None else _as_roots(images),
        state=state,
    )


def _read_images(root: InstalledRoot, objects: Mapping[VerityDigest, int], checks: Checks) -> _Images:
    images = root.images()
    problems = _repository_problems(root, images)
    checks.verdict("repository", problems, f"{len(objects)} objects, {len(images)} images")
    return {digest: _read_image(root, objects, digest, checks) for digest in dict.fromkeys(images.values())}


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


def _read_image(
    root: InstalledRoot, objects: Mapping[VerityDigest, int], digest: VerityDigest, checks: Checks
) -> Directory | str:
    name = f"rootfs image {digest}"
    problem = "is missing"
    if digest in objects:
        try:
            problems = root.object_problems(objects[digest], digest, None, lambda _: None)
            if not problems:
                image = root.content(objects[digest], IMAGE_MAX)
                tree = read_rootfs(image)
                version = ComposefsHeader.unpack(image).composefs_version
                inodes = len({id(inode) for _, inode in walk(tree)})
                checks.ok(name, f"EROFS format V{version}, {len(image)} bytes, {inodes} inodes, fs-verity in place")
                return tree
            problem = f"is damaged: {'; '.join(problems)}"
        except Error as error:
            problem = f"cannot be used: {error.message}"
    checks.failed(name, f"it {problem}")
    return problem


def _check_streams(root: InstalledRoot, objects: Mapping[VerityDigest, int], checks: Checks) -> None:
    """Check that every object is there that the layers and records of the images name."""
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
    root: InstalledRoot, objects: Mapping[VerityDigest, int], images: _Images, checks: Checks, report: Report
) -> None:
    """Read every object of the repository, needed or not, and check that all that are needed are there."""
    needed: dict[VerityDigest, tuple[int, bytes]] = {}
    trees = [tree for tree in images.values() if isinstance(tree, Directory)]
    for path, inode in (entry for tree in trees for entry in walk(tree)):
        if isinstance(inode, File) and isinstance(inode.content, External):
            needed.setdefault(inode.content.digest, (inode.content.size, path))
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
