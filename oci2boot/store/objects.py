"""Objects on their way into the store: written without a name, synced, and named together."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from oci2boot.digest import VerityDigest
from oci2boot.errors import DigestError, StoreError
from oci2boot.formats import fsverity
from oci2boot.store.repository import STAGING, Repository
from oci2boot.system.files import clone, plain_errors, sync_directory, syncfs
from oci2boot.system.fsverity import enable, measured

FEW: Final = 32
"""Files and folders that are synced one by one: a whole file system may have much more to write than ours."""
WHOLE: Final = 8 << 20
"""A file up to this size is hashed before it is written, so that one that is there already is not written at all."""


_PIECE: Final = 1 << 20


class ObjectBatch:
    """Takes objects, and names of streams and images for them; `commit` makes them all part of the store.

    A crash before that leaves only a staging folder; one after it leaves objects that are whole, since their bytes
    were synced before they had a name. One thread fills a batch; several may be filled side by side.
    """

    def __init__(self, repository: Repository) -> None:
        repository.check_writable()
        self.repository = repository
        self._algorithm = repository.algorithm
        self._objects = os.fspath(repository.path / "objects") + "/"
        self.staged: dict[VerityDigest, str] = {}
        self.links: dict[str, VerityDigest] = {}
        """What is named once the objects are: `streams/oci-layer-…`, `images/…`."""
        self.written = 0
        """Bytes of new objects."""
        with plain_errors(StoreError, f"write to the repository {repository.path}"):
            self._staging = tempfile.mkdtemp(prefix=STAGING, dir=repository.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            commit(self.repository, [self])
        else:
            self.discard()

    def discard(self) -> None:
        """Drop what has not been committed."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def __contains__(self, digest: VerityDigest) -> bool:
        return digest in self.staged or os.access(self._objects + digest.path, os.F_OK)

    def link_stream(self, name: str, digest: VerityDigest) -> None:
        self.links[f"streams/{name}"] = digest

    def link_image(self, digest: VerityDigest) -> None:
        self.links[f"images/{digest}"] = digest

    def add(self, data: bytes) -> VerityDigest:
        """Take an object's content; nothing is written where the store has it."""
        digest = fsverity.measure(data, self._algorithm)
        if digest not in self:
            with plain_errors(StoreError, f"write to the repository {self.repository.path}"):
                fd, name = self._new_file()
                try:
                    _write_all(fd, data)
                finally:
                    os.close(fd)
            self.staged[digest] = name
            self.written += len(data)
        return digest

    def add_pieces(self, pieces: Iterable[bytes]) -> VerityDigest:
        """Take an object that is too large to be held, piece by piece."""
        hasher = fsverity.Hasher(self._algorithm)
        with plain_errors(StoreError, f"write to the repository {self.repository.path}"):
            fd, name = self._new_file()
            try:
                for piece in pieces:
                    hasher.update(piece)
                    _write_all(fd, piece)
            finally:
                os.close(fd)
            digest = hasher.digest()
            if digest in self:
                Path(name).unlink()
            else:
                self.staged[digest] = name
                self.written += hasher.size
        return digest

    def take(self, digest: VerityDigest, path: Path) -> None:
        """Take an object from another store: blocks shared where the file system can, else copied, and always measured.

        An object that the kernel holds to its digest cannot change, so it may even be the same file.
        """
        if digest in self:
            return
        with plain_errors(StoreError, f"copy {path} to the repository {self.repository.path}"):
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if measured(source) == digest.raw and self._take_link(digest, path):
                    return
                self._take_copy(digest, source, path)
            finally:
                os.close(source)

    def _take_link(self, digest: VerityDigest, path: Path) -> bool:
        name = f"{self._staging}/{len(self.staged)}"
        try:
            os.link(path, name)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                return False
            raise
        self.staged[digest] = name
        return True

    def _take_copy(self, digest: VerityDigest, source: int, path: Path) -> None:
        hasher = fsverity.Hasher(self._algorithm)
        fd, name = self._new_file()
        try:
            shared = clone(source, fd)
            while piece := os.read(source, _PIECE):
                hasher.update(piece)
                if not shared:
                    _write_all(fd, piece)
        finally:
            os.close(fd)
        if (found := hasher.digest()) != digest:
            raise DigestError(f"{path} is damaged: it measures {found}", hint="run `oci2boot fsck` on its store")
        self.staged[digest] = name
        self.written += hasher.size

    def _new_file(self) -> tuple[int, str]:
        name = f"{self._staging}/{len(self.staged)}"
        # Objects may be an image's /etc/shadow; the folder above is 0700, and the mode is what composefs expects.
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644), name


def commit(repository: Repository, batches: Sequence[ObjectBatch]) -> None:
    """Make batches part of the store: bytes to the disk, then names for objects, then names for streams and images."""
    try:
        with plain_errors(StoreError, f"write to the repository {repository.path}"):
            staged = [item for batch in batches for item in batch.staged.items()]
            folders = {repository.object_path(digest).parent for digest, _ in staged}
            for folder in folders:
                folder.mkdir(exist_ok=True)
            _sync(repository, [Path(name) for _, name in staged])
            for digest, name in staged:
                if repository.secure:
                    _enable_verity(repository, name)
                Path(name).rename(repository.object_path(digest))
            _sync(repository, [*folders, repository.path / "objects"] if staged else [])
            for batch in batches:
                for name, digest in batch.links.items():
                    repository.link(name, digest)
            for area in {name.partition("/")[0] for batch in batches for name in batch.links}:
                sync_directory(repository.path / area)
    finally:
        for batch in batches:
            batch.discard()


def _sync(repository: Repository, paths: Sequence[Path]) -> None:
    """Get files or folders to the disk: one by one where they are few, else with the whole file system."""
    if len(paths) > FEW:
        syncfs(repository.path)
        return
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _enable_verity(repository: Repository, name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not enable(fd, repository.algorithm):
            raise StoreError(f"{repository.path} promises fs-verity, which its file system does not have")
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
