"""Is the store what it says? Every object against its name, every link, stream, image and reference."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.digest import Hash, OciDigest, VerityDigest
from oci2boot.errors import Error
from oci2boot.formats import fsverity
from oci2boot.formats.splitstream import CONFIG, LAYER, MANIFEST, SplitStream
from oci2boot.rootfs.reader import referenced_objects
from oci2boot.store.reach import AREAS, named, stored_objects
from oci2boot.store.repository import Repository
from oci2boot.system.fsverity import is_enabled

_PIECE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """The verdict on a store."""

    objects: int
    streams: int
    images: int
    problems: tuple[str, ...]
    broken: frozenset[VerityDigest] = frozenset()
    """Objects that are damaged or missing."""

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "objects": self.objects,
            "streams": self.streams,
            "images": self.images,
            "problems": list(self.problems),
        }


def check(repository: Repository, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Checked:
    """Read everything once. Damage is reported, not raised; `progress` gets (objects read, objects)."""
    problems: list[str] = []
    broken: set[VerityDigest] = set()
    objects = {}
    try:
        objects = dict(stored_objects(repository))
    except (Error, OSError) as error:
        problems.append(str(error))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = pool.map(lambda item: _object_problem(*item, secure=repository.secure), objects.items())
        for count, (digest, problem) in enumerate(zip(objects, verdicts, strict=True), 1):
            if problem:
                problems.append(problem)
                broken.add(digest)
            progress(count, len(objects))

    links = {area: named(repository, area) for area in AREAS}
    for area, names in links.items():
        for name, digest in names.items():
            check_one = _image_problems if area == "images" else _stream_problems
            try:
                found, missing = check_one(repository, name, digest)
                broken |= missing
                found += [f"object {one} is missing" for one in sorted(missing, key=str)]
                problems += [f"{area}/{name}: {problem}" for problem in found]
            except (Error, OSError) as error:
                problems.append(f"{area}/{name}: {error}")
        try:
            problems += [
                f"the reference {name} names {target}, which is gone"
                for name, _, target in repository.refs(area)
                if target not in names
            ]
        except Error as error:
            problems.append(str(error))
    return Checked(len(objects), len(links["streams"]), len(links["images"]), tuple(problems), frozenset(broken))


def measure_file(path: Path, algorithm: Hash) -> VerityDigest:
    """Measure a file of any size."""
    hasher = fsverity.Hasher(algorithm)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.digest()


def _object_problem(digest: VerityDigest, path: Path, *, secure: bool) -> str | None:
    try:
        found = measure_file(path, digest.algorithm)
        if found != digest:
            return f"object {digest} is damaged: it measures {found}"
        if secure and not is_enabled(path):
            return f"object {digest} has no fs-verity, which the repository promises"
    except OSError as error:
        return f"object {digest} cannot be read: {error.strerror}"
    return None


def _image_problems(repository: Repository, name: str, digest: VerityDigest) -> tuple[list[str], set[VerityDigest]]:
    """Return what is wrong, and the objects that are not there."""
    if not repository.has_object(digest):
        return [], {digest}
    needed = referenced_objects(repository.read_object(digest))
    problems = [] if name == digest.hex else [f"it points at another image, {digest}"]
    return problems, {one for one in needed if not repository.has_object(one)}


def _stream_problems(repository: Repository, name: str, digest: VerityDigest) -> tuple[list[str], set[VerityDigest]]:
    if not repository.has_object(digest):
        return [], {digest}
    stream = SplitStream.unpack(repository.read_object(digest))
    missing = {one for one in (*stream.objects, *stream.named.values()) if not repository.has_object(one)}
    if missing:
        return [], missing
    if stream.content_type in (MANIFEST, CONFIG):
        promised = name.split("-", 2)[-1]
        found = OciDigest.of(repository.read_object(stream.sole_object()))
        if promised.startswith("sha256:") and str(found) != promised:
            return [f"its content is {found}"], set()
    if stream.content_type == LAYER:
        for _ in stream.records():
            pass
    return [], set()
