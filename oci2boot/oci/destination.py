"""Where images go: OCI image layouts, a directory or a tar of one; registries are in `push`. image-spec,
image-layout.md.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from oci2boot.digest import OciDigest
from oci2boot.errors import TargetError
from oci2boot.formats.tar import NO_XATTRS, Entry
from oci2boot.formats.tar_writer import END, header, padding
from oci2boot.oci.documents import MAX_DOCUMENT, parse_object
from oci2boot.oci.manifest import OCI_INDEX, REF_NAME, Descriptor, parse_layout_index
from oci2boot.oci.outgoing import ImageDestination, Open, checked, pack_json, referring, to_json
from oci2boot.oci.reference import ArchiveReference, LayoutReference, Reference, RegistryReference
from oci2boot.oci.source import SourceOptions
from oci2boot.system.files import atomic_file, plain_errors, read_all, write_atomically

_MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'


def open_destination(reference: Reference, options: SourceOptions) -> ImageDestination:
    match reference:
        case RegistryReference():
            from oci2boot.oci.push import RegistryDestination

            return RegistryDestination(reference, tls_verify=options.tls_verify, authfile=options.authfile)
        case LayoutReference():
            return LayoutDestination(reference)
        case ArchiveReference():
            return ArchiveDestination(reference)
    raise TargetError(f"{reference} cannot take an image", hint="give docker://…, oci:DIR:TAG or oci-archive:FILE")


def _index(manifests: list[Any]) -> bytes:
    return pack_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def _tagged(descriptor: Descriptor, tag: str | None) -> dict[str, Any]:
    annotations = {**descriptor.annotations, **({REF_NAME: tag} if tag else {})}
    return to_json(Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, annotations))


def _blob_path(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"


class LayoutDestination(ImageDestination):
    """A directory; what else is in it stays."""

    def __init__(self, reference: LayoutReference) -> None:
        self._reference = reference
        self._root = reference.path
        self._marker = self._root / "oci-layout"
        with plain_errors(TargetError, f"write {reference}"):
            there = next(path for path in (self._root, *self._root.absolute().parents) if path.exists())
            if there == self._root and not self._marker.exists() and any(self._root.iterdir()):
                raise TargetError(f"{self._root} is neither empty nor an OCI layout")
            if not there.is_dir():
                raise TargetError(f"cannot write {reference}: {there} is not a directory")
            if not os.access(there, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))

    def has(self, descriptor: Descriptor) -> bool:
        path = self._root / _blob_path(descriptor)
        return path.is_file() and path.stat().st_size == descriptor.size

    def put(self, descriptor: Descriptor, content: Open) -> None:
        path = self._root / _blob_path(descriptor)
        with plain_errors(TargetError, f"write {self._reference}"):
            if not self._marker.exists():
                self._root.mkdir(parents=True, exist_ok=True)
                write_atomically(self._marker, _MARKER)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.writelines(checked(descriptor, content()))

    def name(self, descriptor: Descriptor, manifest: bytes) -> None:
        self.put(descriptor, lambda: [manifest])
        path, tag = self._root / "index.json", self._reference.tag
        with plain_errors(TargetError, f"write {self._reference}"):
            listed = self._listed(path)
            kept = [one for one in listed if tag is None or (one.get("annotations") or {}).get(REF_NAME) != tag]
            if tag is None:
                kept = [one for one in kept if one["digest"] != str(descriptor.digest)]
            write_atomically(path, _index([*kept, _tagged(descriptor, tag)]))

    def refer(self, descriptor: Descriptor, manifest: bytes, subject: OciDigest, artifact_type: str) -> None:  # noqa: ARG002 the manifest names its subject
        self.put(descriptor, lambda: [manifest])
        path = self._root / "index.json"
        with plain_errors(TargetError, f"write {self._reference}"):
            kept = [one for one in self._listed(path) if one["digest"] != str(descriptor.digest)]
            write_atomically(path, _index([*kept, referring(descriptor, artifact_type)]))

    def _listed(self, path: Path) -> list[Any]:
        what = f"index.json of {self._reference}"
        try:
            with path.open("rb") as file:
                data = read_all(file, MAX_DOCUMENT, what)
        except FileNotFoundError:
            return []
        parse_layout_index(data, what)
        manifests = parse_object(data, what)["manifests"]
        assert isinstance(manifests, list)
        return manifests


class ArchiveDestination(ImageDestination):
    """A tar, new; it has its name only when it is whole."""

    def __init__(self, reference: ArchiveReference) -> None:
        self._reference = reference
        self._written: set[OciDigest] = set()
        self._stack = ExitStack()
        if reference.path.exists():
            raise TargetError(f"{reference.path} exists", hint="remove it first, or choose another name")

    def __enter__(self) -> Self:
        with plain_errors(TargetError, f"write {self._reference}"):
            self._file = self._stack.enter_context(atomic_file(self._reference.path))
            self._add("oci-layout", [_MARKER], len(_MARKER))
        return self

    def __exit__(self, *error: Any) -> None:
        with plain_errors(TargetError, f"write {self._reference}"):
            self._stack.__exit__(*error)

    def has(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self._written

    def put(self, descriptor: Descriptor, content: Open) -> None:
        self._add(_blob_path(descriptor), checked(descriptor, content()), descriptor.size)
        self._written.add(descriptor.digest)

    def name(self, descriptor: Descriptor, manifest: bytes) -> None:
        self.put(descriptor, lambda: [manifest])
        index = _index([_tagged(descriptor, self._reference.tag)])
        self._add("index.json", [index], len(index))
        with plain_errors(TargetError, f"write {self._reference}"):
            self._file.write(END)

    def refer(self, descriptor: Descriptor, manifest: bytes, subject: OciDigest, artifact_type: str) -> None:  # noqa: ARG002 it never does
        raise TargetError(
            f"{self._reference} is an archive, which cannot be added to", hint="unpack it: a layout takes signatures"
        )

    def _add(self, path: str, pieces: Iterable[bytes], size: int) -> None:
        entry = Entry(path.encode(), stat.S_IFREG, 0o644, 0, 0, 0, 0, NO_XATTRS, b"", b"", 0)
        with plain_errors(TargetError, f"write {self._reference}"):
            self._file.write(header(entry, size))
            self._file.writelines(pieces)
            self._file.write(padding(size))
