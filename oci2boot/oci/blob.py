"""Blobs that check themselves: no reader gets the last byte of one before digest and size have been found right."""

import hashlib
from typing import Final, Protocol

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError
from oci2boot.oci.documents import MAX_DOCUMENT
from oci2boot.oci.manifest import Descriptor
from oci2boot.system.files import read_all

PIECE: Final = 256 << 10
"""Bytes that are read at once."""


class RawStream(Protocol):
    """Bytes as a source gives them, unchecked."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""
        ...

    def close(self) -> None: ...


class Blob:
    """A blob's bytes in order, as stored: compressed layers stay so."""

    def __init__(self, raw: RawStream, descriptor: Descriptor, what: str) -> None:
        self.descriptor = descriptor
        self.what = what
        self._raw = raw
        self._hash = hashlib.new(descriptor.digest.algorithm)
        self._left = descriptor.size
        self._checked = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none only after the end was found right, else `DigestError`."""
        if self._checked:
            return b""
        data = self._raw.read(min(size, self._left)) if self._left else b""
        self._hash.update(data)
        self._left -= len(data)
        if self._left == 0:
            self._check_end()
        elif not data:
            size = self.descriptor.size
            raise DigestError(f"{self.what} is cut short: {size - self._left} of {size} bytes are there")
        return data

    def _check_end(self) -> None:
        if self._raw.read(1):
            raise DigestError(f"{self.what} is longer than the {self.descriptor.size} bytes promised")
        found = OciDigest(self.descriptor.digest.algorithm, self._hash.hexdigest())
        if found != self.descriptor.digest:
            raise DigestError(f"{self.what} has the digest {found}, its descriptor promises {self.descriptor.digest}")
        self._checked = True

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> "Blob":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_document(blob: Blob) -> bytes:
    """Return the whole of a small blob: a manifest, an index or a config."""
    with blob:
        return read_all(blob, MAX_DOCUMENT, blob.what, size=blob.descriptor.size)
