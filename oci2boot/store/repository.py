"""A composefs repository on disk, as composefs-rs 0.9 lays it out: objects by fs-verity digest, streams, images, refs.

meta.json                    what the repository promises
objects/hh/rest              content, named by its fs-verity digest
images/<hex>                 -> ../objects/hh/rest; images/refs/… -> keep an image
streams/<name>               -> ../objects/hh/rest; streams/refs/… -> keep a stream
.staging-…                   objects that have no name yet; a collector removes what a crash left
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import DigestError, FormatError, LimitError, StoreError, WrongStoreError
from oci2boot.formats import fsverity
from oci2boot.formats.splitstream import SplitStream
from oci2boot.system.files import (
    is_temporary,
    make_directories,
    plain_errors,
    read_all,
    read_limited,
    replace_symlink,
    sync_directory,
    write_atomically,
)
from oci2boot.system.fsverity import enable, is_enabled

MAX_META: Final = 1 << 16
MAX_READ: Final = 1 << 30
"""An object that is read whole: an EROFS image, a stream, a UKI."""
STAGING: Final = ".staging-"
V1_EROFS: Final = "v1_erofs"
_ALGORITHMS: Final[dict[str, Hash]] = {"fsverity-sha256-12": "sha256", "fsverity-sha512-12": "sha512"}


class Repository:
    """An open repository. While it is open nobody collects garbage in it (a shared lock)."""

    def __init__(self, path: Path, algorithm: Hash, *, writable: bool, secure: bool, lock: int) -> None:
        self.path = path
        self.algorithm: Hash = algorithm
        self.writable = writable
        self.secure = secure
        """Every object has fs-verity in the kernel, as meta.json itself has."""
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a repository that is there. Raises `StoreError` for none, or for one that is not understood."""
        with plain_errors(StoreError, f"open the repository {path}"):
            if not (path / "meta.json").is_file():
                raise StoreError(f"{path} is not a composefs repository", hint="`oci2boot convert` makes one")
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                algorithm, writable = _read_meta(path / "meta.json")
                secure = is_enabled(path / "meta.json")
            except BaseException:
                os.close(lock)
                raise
        return cls(path, algorithm, writable=writable, secure=secure, lock=lock)

    @classmethod
    def ensure(cls, path: Path, algorithm: Hash | None = None) -> Self:
        """Open the repository, made now if there is none; `algorithm` is sha256 for a new one."""
        if not (path / "meta.json").exists():
            with plain_errors(StoreError, f"make a repository in {path}"):
                _create(path, algorithm or "sha256")
        repository = cls.open(path)
        if algorithm is not None and repository.algorithm != algorithm:
            repository.close()
            raise WrongStoreError(f"{path} is a {repository.algorithm} repository, not {algorithm}")
        return repository

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def check_writable(self) -> None:
        if not self.writable:
            raise StoreError(f"{self.path} has a feature that only a newer version may write")

    def lock_alone(self) -> None:
        """Hold the repository open alone, or fail at once."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{self.path} is in use", hint="wait for the other command to end") from error

    # Objects

    def object_path(self, digest: VerityDigest) -> Path:
        return self.path / "objects" / digest.path

    def has_object(self, digest: VerityDigest) -> bool:
        return os.access(self.object_path(digest), os.F_OK)

    def object_size(self, digest: VerityDigest) -> int:
        """Return the bytes of an object that is there."""
        try:
            return self.object_path(digest).stat().st_size
        except FileNotFoundError as error:
            raise StoreError(f"object {digest} is missing from {self.path}", hint="run `oci2boot fsck`") from error

    def read_object(self, digest: VerityDigest, limit: int = MAX_READ) -> bytes:
        """Return an object's content, checked against its name."""
        path = self.object_path(digest)
        try:
            with path.open("rb") as file:
                data = read_all(file, limit, f"object {digest}", size=os.fstat(file.fileno()).st_size)
        except FileNotFoundError as error:
            raise StoreError(f"object {digest} is missing from {self.path}", hint="run `oci2boot fsck`") from error
        if (found := fsverity.measure(data, digest.algorithm)) != digest:
            raise DigestError(f"object {digest} is damaged: it measures {found}", hint="run `oci2boot fsck`")
        return data

    # Streams and images, by name

    def stream_digest(self, name: str) -> VerityDigest | None:
        return self._named("streams", name)

    def image_digest(self, name: str) -> VerityDigest | None:
        return self._named("images", name)

    def read_stream(self, name: str) -> SplitStream:
        digest = self.stream_digest(name)
        if digest is None:
            raise StoreError(f"{self.path} has no stream {name}")
        return SplitStream.unpack(self.read_object(digest))

    def names_of_streams(self) -> dict[VerityDigest, str]:
        """Return the name of each object that is a stream."""
        names = sorted(path.name for path in (self.path / "streams").glob("*") if path.name != "refs")
        return {digest: name for name in names if (digest := self.stream_digest(name))}

    def link(self, name: str, digest: VerityDigest) -> None:
        """Point `streams/<name>` or `images/<hex>` at an object; the caller syncs the folder."""
        self.check_writable()
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        replace_symlink(path, f"../objects/{digest.path}")

    def set_ref(self, area: str, ref: str, name: str) -> None:
        """Point `<area>/refs/<ref>` at `<area>/<name>`: what it names is kept. `area` is streams or images."""
        path = self.path / area / "refs" / ref
        with plain_errors(StoreError, f"write the reference {ref}"):
            make_directories(path.parent)
            replace_symlink(path, "../" * (1 + ref.count("/")) + name)
            sync_directory(path.parent)

    def ref_target(self, path: str) -> str | None:
        """Return the name that the reference `<area>/refs/…` leads to."""
        try:
            return (self.path / path).readlink().name
        except FileNotFoundError:
            return None

    def refs(self, area: str, beneath: str = "") -> Iterator[tuple[str, Path, str]]:
        """Yield (name below `beneath`, link, what it points at) for each reference of `streams` or `images`."""
        top = self.path / area / "refs" / beneath
        for folder, folders, files in os.walk(top):
            folders.sort()
            for file in sorted(files + [name for name in folders if Path(folder, name).is_symlink()]):
                link = Path(folder, file)
                if is_temporary(file):
                    continue
                if not link.is_symlink():
                    raise StoreError(
                        f"{link} is not a symbolic link", hint="references are symbolic links; remove what is not"
                    )
                yield str(link.relative_to(top)), link, link.readlink().name

    def _named(self, area: str, name: str) -> VerityDigest | None:
        link = self.path / area / name
        try:
            target = link.readlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{link} is not a symbolic link") from error
        try:
            digest = VerityDigest.parse("".join(target.parts[-2:]))
        except FormatError as error:
            raise StoreError(f"{link} points at {target}, which is no object") from error
        if digest.algorithm != self.algorithm or target.parts[:-2] != ("..", "objects"):
            raise StoreError(f"{link} points at {target}, which is no object of this repository")
        return digest


def meta_json(algorithm: Hash) -> bytes:
    """Return the meta.json of a new repository, as composefs-rs 0.9 writes it."""
    meta = {
        "version": 1,
        "algorithm": f"fsverity-{algorithm}-12",
        "features": {"compatible": [], "read-only-compatible": [V1_EROFS], "incompatible": []},
        "erofs_formats": {"default": 1},
    }
    return (json.dumps(meta, indent=2) + "\n").encode()


def _create(path: Path, algorithm: Hash) -> None:
    make_directories(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    # The name meta.json comes last, its verity before it: a repository is there whole, or not yet.
    temporary = path / "meta.json.new"
    folders = [path / "objects", path / "images", path / "streams"]
    ours = [*folders, temporary]
    if any(found not in ours and not is_temporary(found.name) for found in path.iterdir()) or any(
        folder.is_dir() and any(folder.iterdir()) for folder in folders
    ):
        raise WrongStoreError(f"{path} is not empty and not a composefs repository")
    for folder in folders:
        folder.mkdir(exist_ok=True)
    write_atomically(temporary, meta_json(algorithm))
    fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enable(fd, algorithm)
    finally:
        os.close(fd)
    temporary.rename(path / "meta.json")
    sync_directory(path)
    sync_directory(path.parent)


def _read_meta(path: Path) -> tuple[Hash, bool]:
    """Return (hash, may be written)."""
    try:
        meta: Any = json.loads(read_limited(path, MAX_META, StoreError))
        version, algorithm = meta["version"], meta["algorithm"]
        features = meta.get("features", {})
        unknown = set(features.get("incompatible", []))
        read_only = set(features.get("read-only-compatible", [])) - {V1_EROFS}
    except (LimitError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged") from error
    if version != 1 or unknown:
        raise StoreError(f"{path} is of a newer version: {', '.join(map(str, unknown)) or version}")
    with suppress(TypeError):
        if algorithm in _ALGORITHMS:
            return _ALGORITHMS[algorithm], not read_only
    raise StoreError(f"{path} names an unknown algorithm: {algorithm}", hint=f"known are {', '.join(_ALGORITHMS)}")
