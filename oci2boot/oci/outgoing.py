"""What every place for images does, and what its descriptors and documents are made of.

Blobs first, the manifest last and its name after it, so that no reader finds half an image.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError
from oci2boot.oci.manifest import Descriptor

Open = Callable[[], Iterable[bytes]]
"""Gives a blob's bytes in pieces, from the start whenever it is called."""


class ImageDestination(ABC):
    """A place for one image; a context manager, whose image is there when `name` has returned."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def has(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there already."""

    @abstractmethod
    def put(self, descriptor: Descriptor, content: Open) -> None:
        """Store a blob; `DigestError` where the content is not what its descriptor says."""

    @abstractmethod
    def name(self, descriptor: Descriptor, manifest: bytes) -> None:
        """Store the manifest under the name that the reference gives."""

    @abstractmethod
    def refer(self, descriptor: Descriptor, manifest: bytes, subject: OciDigest, artifact_type: str) -> None:
        """Store the manifest of an artifact where those find it who ask what refers to its subject."""


def checked(descriptor: Descriptor, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pass a blob's bytes on; `DigestError` at the end if they are not what the descriptor says."""
    hasher = hashlib.new(descriptor.digest.algorithm)
    size = 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
        yield piece
    digest = OciDigest(descriptor.digest.algorithm, hasher.hexdigest())
    if (digest, size) != (descriptor.digest, descriptor.size):
        raise DigestError(f"a blob of digest {digest} and {size} bytes, but {descriptor.digest} is promised")


def to_json(descriptor: Descriptor) -> dict[str, Any]:
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        document["annotations"] = dict(descriptor.annotations)
    return document


def referring(descriptor: Descriptor, artifact_type: str) -> dict[str, Any]:
    """Return an artifact's entry in a list."""
    return {**to_json(descriptor), "artifactType": artifact_type}


def pack_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
