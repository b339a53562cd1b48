"""Images in an OCI image layout, a directory or a tar of one. image-spec, image-layout.md."""

import os
import stat
from abc import abstractmethod
from typing import Final

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError, FormatError, SourceError
from oci2boot.oci.blob import Blob, RawStream, read_document
from oci2boot.oci.documents import MAX_DOCUMENT, parse_object
from oci2boot.oci.image import ImageSource, root_of_layout
from oci2boot.oci.manifest import SIGNATURES, Descriptor, Index, Platform, parse_layout_index
from oci2boot.oci.members import Members, Span
from oci2boot.oci.reference import ArchiveReference, LayoutReference
from oci2boot.system.files import read_all

LAYOUT_VERSION: Final = "1.0.0"


class _Layout(ImageSource):
    """What a directory and an archive share; they differ in how a file is opened."""

    reference: LayoutReference | ArchiveReference

    @abstractmethod
    def _open_file(self, path: str) -> tuple[RawStream, int] | None:
        """Open one file of the layout, and tell its size in bytes; None where nothing is."""

    def _small_file(self, path: str) -> bytes:
        opened = self._open_file(path)
        if opened is None:
            raise SourceError(
                f"{self.reference} is not an OCI layout: it has no {path}",
                hint="oci: wants a directory, and oci-archive: a tar, with oci-layout, index.json and blobs/ in it",
            )
        stream, size = opened
        try:
            return read_all(stream, MAX_DOCUMENT, f"{path} of {self.reference}", size=size)
        finally:
            stream.close()

    def _root(self) -> tuple[Descriptor, bytes]:
        version = parse_object(self._small_file("oci-layout"), f"oci-layout of {self.reference}")
        if version.get("imageLayoutVersion") != LAYOUT_VERSION:
            raise FormatError(f"{self.reference} is not an OCI layout of version {LAYOUT_VERSION}")
        descriptor = root_of_layout(self._index(), self.reference.tag, self.reference)
        return descriptor, self._document(descriptor, f"the manifest of {self.reference}")

    def _index(self) -> Index:
        return parse_layout_index(self._small_file("index.json"), f"index.json of {self.reference}")

    def _document(self, descriptor: Descriptor, what: str) -> bytes:
        return read_document(self._open(descriptor, what))

    def referrers(self, subject: OciDigest) -> list[Descriptor]:  # noqa: ARG002 the artifact says whose it is
        return [entry.descriptor for entry in self._index().entries if entry.artifact_type == SIGNATURES]

    def open(self, descriptor: Descriptor) -> Blob:
        return self._open(descriptor, f"the blob {descriptor.digest}")

    def _open(self, descriptor: Descriptor, what: str) -> Blob:
        digest = descriptor.digest
        opened = self._open_file(f"blobs/{digest.algorithm}/{digest.hex}")
        if opened is None:
            raise SourceError(f"{self.reference} is incomplete: {what} is not in it ({digest})")
        stream, size = opened
        if size != descriptor.size:
            stream.close()
            problem = "cut short" if size < descriptor.size else "too long"
            raise DigestError(f"{what} is {problem}: {size} bytes are there, {descriptor.size} are promised")
        return Blob(stream, descriptor, what)


class LayoutSource(_Layout):
    """A directory. No symbolic link in it is followed, so nothing outside of it is read."""

    def __init__(self, reference: LayoutReference, platform: Platform | None) -> None:
        super().__init__(reference, platform)
        self.reference = reference
        try:
            self._root_fd = os.open(reference.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{reference} cannot be opened: {error.strerror}") from error

    def _open_file(self, path: str) -> tuple[RawStream, int] | None:
        *folders, name = path.split("/")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        at = os.dup(self._root_fd)
        try:
            for folder in folders:
                inner = os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = inner
            fd = os.open(name, flags, dir_fd=at)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"{path} of {self.reference} cannot be read: {error.strerror}") from error
        finally:
            os.close(at)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise SourceError(f"{path} of {self.reference} is not a regular file")
        return Span(fd, 0, status.st_size), status.st_size

    def close(self) -> None:
        fd, self._root_fd = self._root_fd, -1
        if fd >= 0:
            os.close(fd)


class ArchiveSource(_Layout):
    """A tar, read where it lies: nothing is extracted."""

    def __init__(self, reference: ArchiveReference, platform: Platform | None) -> None:
        super().__init__(reference, platform)
        self.reference = reference
        self._members = Members(reference.path, str(reference))

    def _open_file(self, path: str) -> tuple[RawStream, int] | None:
        return self._members.open(path.encode())

    def close(self) -> None:
        self._members.close()
