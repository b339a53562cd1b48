"""What the store's references reach, and the removal of the rest.

The roots and the walk are those of composefs-rs 0.9: every link below `images/refs` and `streams/refs`; an image
keeps the objects of its files, a stream its objects and all that its named references lead to.
"""

import os
import shutil
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oci2boot.digest import HEX_LENGTH, VerityDigest
from oci2boot.errors import FormatError, StoreError
from oci2boot.formats.splitstream import SplitStream
from oci2boot.rootfs.reader import referenced_objects
from oci2boot.store.repository import STAGING, Repository
from oci2boot.system.files import is_temporary, plain_errors

AREAS = ("images", "streams")


@dataclass(frozen=True, slots=True)
class GarbagePlan:
    """What a collection removes."""

    objects: tuple[VerityDigest, ...]
    links: tuple[str, ...]
    """Names in images/ and streams/ that nothing keeps, relative to the repository."""
    leftovers: tuple[str, ...]
    """Staging folders and temporary names of commands that were stopped, relative to the repository."""
    freed: int
    """Bytes on disk."""
    kept: int
    """Objects that stay."""

    def to_json(self) -> dict[str, Any]:
        return {
            "objects": [str(digest) for digest in self.objects],
            "links": list(self.links),
            "leftovers": list(self.leftovers),
            "freed_bytes": self.freed,
            "kept_objects": self.kept,
        }


def named(repository: Repository, area: str) -> dict[str, VerityDigest]:
    """Return {name: object} of the links at the top of images/ or streams/."""
    links = {}
    folder = repository.path / area
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 (names, not paths)
            if name != "refs" and not is_temporary(name):
                digest = repository.stream_digest(name) if area == "streams" else repository.image_digest(name)
                if digest is not None:
                    links[name] = digest
    return links


def stored_objects(repository: Repository) -> Iterator[tuple[VerityDigest, Path]]:
    """Yield every object that is there. A file with a name that is no digest is a `StoreError`."""
    top = repository.path / "objects"
    length = HEX_LENGTH[repository.algorithm]
    for folder in sorted(top.iterdir()) if top.is_dir() else ():
        for path in sorted(folder.iterdir()):
            digits = folder.name + path.name
            try:
                digest = VerityDigest.parse(digits)
            except FormatError:
                digest = None
            if digest is None or len(folder.name) != 2 or len(digits) != length:
                raise StoreError(f"{path} is not an object of this repository", hint="remove it if it is yours")
            yield digest, path


def follow(
    repository: Repository,
    images: Iterable[VerityDigest],
    streams: Iterable[VerityDigest],
    names: Container[VerityDigest],
) -> tuple[set[VerityDigest], set[VerityDigest]]:
    """Return every object that these images and streams keep, and which of them are streams.

    `names` are the objects that a name in streams/ leads to: of what a stream names, these are streams too.
    """
    objects: set[VerityDigest] = set()
    for digest in images:
        objects |= {digest, *referenced_objects(repository.read_object(digest))}
    waiting, walked = list(streams), set[VerityDigest]()
    while waiting:
        digest = waiting.pop()
        if digest in walked:
            continue
        walked.add(digest)
        stream = SplitStream.unpack(repository.read_object(digest))
        objects |= {digest, *stream.objects, *stream.named.values()}
        waiting += [one for one in stream.named.values() if one in names]
    return objects, walked


def live_objects(
    repository: Repository, roots: Iterable[VerityDigest] = (), stale: Container[str] = ()
) -> set[VerityDigest]:
    """Return every object that a reference keeps, or one of the rootfs images `roots`.

    References in `stale`, by path in the repository, keep nothing any more.
    """
    links = {area: named(repository, area) for area in AREAS}
    kept: dict[str, list[VerityDigest]] = {"images": list(roots), "streams": []}
    for area, what in (("images", "an image"), ("streams", "a stream")):
        for name, link, target in repository.refs(area):
            if f"{area}/refs/{name}" in stale:
                continue
            if target not in links[area]:
                raise StoreError(f"the reference {name} names {what} that is gone", hint=f"remove {link}")
            kept[area].append(links[area][target])
    return follow(repository, kept["images"], kept["streams"], set(links["streams"].values()))[0]


def plan_collection(
    repository: Repository, roots: Iterable[VerityDigest] = (), stale: Container[str] = ()
) -> GarbagePlan:
    """Find what neither references nor the rootfs images `roots` keep; nothing is changed."""
    with plain_errors(StoreError, f"read the repository {repository.path}"):
        live = live_objects(repository, roots, stale)
        dead, freed, kept = [], 0, 0
        for digest, path in stored_objects(repository):
            if digest in live:
                kept += 1
            else:
                dead.append(digest)
                freed += path.lstat().st_blocks * 512
        gone = set(dead)
        links = [
            f"{area}/{name}"
            for area in AREAS
            for name, digest in named(repository, area).items()
            if digest in gone or not repository.has_object(digest)
        ]
        leftovers = sorted(_leftovers(repository.path))
    return GarbagePlan(tuple(dead), tuple(links), tuple(leftovers), freed, kept)


def _leftovers(top: Path) -> Iterator[str]:
    for path in top.iterdir():
        if path.name.startswith(STAGING) or is_temporary(path.name):
            yield path.name
    for area in AREAS:
        for folder, folders, files in os.walk(top / area):
            yield from (str(Path(folder, name).relative_to(top)) for name in folders + files if is_temporary(name))


def collect(repository: Repository, roots: Iterable[VerityDigest] = ()) -> GarbagePlan:
    """Remove what nothing keeps, names before what they name: stopped at any point, the rest is whole."""
    repository.check_writable()
    repository.lock_alone()
    plan = plan_collection(repository, roots)
    with plain_errors(StoreError, f"remove garbage from {repository.path}"):
        for link in plan.links:
            (repository.path / link).unlink()
        for digest in plan.objects:
            repository.object_path(digest).unlink()
        for leftover in plan.leftovers:
            path = repository.path / leftover
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return plan
