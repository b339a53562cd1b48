"""Layers in the store: each a split stream of its tar, its files' contents objects of their own."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from oci2boot.digest import External, Hash, OciDigest, VerityDigest
from oci2boot.errors import DigestError, FormatError, LimitError, StoreError
from oci2boot.formats import fsverity
from oci2boot.formats.splitstream import LAYER, MAX_INLINE, SplitStream, SplitStreamWriter
from oci2boot.formats.tar import Entry, read_tar
from oci2boot.store.objects import WHOLE, ObjectBatch
from oci2boot.store.repository import Repository

PIECE: Final = 1 << 20

Reader = Callable[[int], bytes]
"""Returns up to that many bytes of a tar, none at its end."""


def stream_name(diff_id: OciDigest) -> str:
    return f"oci-layer-{diff_id}"


class _Buffered:
    """Exact counts out of a reader that gives what it has."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._piece = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end."""
        end = self._at + size
        if end <= len(self._piece):
            data = self._piece[self._at : end]
            self._at = end
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        while size:
            if self._at == len(self._piece):
                self._piece, self._at = self._read(PIECE), 0
                if not self._piece:
                    return
            data = self._piece[self._at : self._at + size]
            self._at += len(data)
            size -= len(data)
            yield data


class MeasuredTar:
    """A tar whose bodies are measured and dropped: all that a digest needs, and nothing is stored."""

    def __init__(self, read: Reader, algorithm: Hash) -> None:
        self._buffered = _Buffered(read)
        self._algorithm: Hash = algorithm
        self.last = b""
        """The body taken last, if it was small enough to be held; for those who want its content after all."""

    def take(self, size: int) -> bytes:
        return self._buffered.take(size)

    def body(self, size: int) -> External:
        if size <= WHOLE:
            self.last = self._buffered.take(size)
            if len(self.last) != size:
                raise FormatError("the layer ends within a file")
            return External(fsverity.measure(self.last, self._algorithm), size)
        self.last = b""
        hasher = fsverity.Hasher(self._algorithm)
        for piece in _exactly(self._buffered.pieces(size), size):
            hasher.update(piece)
        return External(hasher.digest(), size)


class _StoringTar:
    """A fresh tar: bodies become objects, all else goes to the split stream."""

    def __init__(self, read: Reader, batch: ObjectBatch, stream: SplitStreamWriter) -> None:
        self._buffered = _Buffered(read)
        self._batch = batch
        self._stream = stream
        self._inline = 0

    def take(self, size: int) -> bytes:
        data = self._buffered.take(size)
        self._inline += len(data)
        if self._inline > MAX_INLINE:
            raise LimitError(f"a layer with more than {MAX_INLINE} bytes outside its files")
        self._stream.inline(data)
        return data

    def body(self, size: int) -> External:
        if size <= WHOLE:
            data = self._buffered.take(size)
            if len(data) != size:
                raise FormatError("the layer ends within a file")
            digest = self._batch.add(data)
        else:
            digest = self._batch.add_pieces(_exactly(self._buffered.pieces(size), size))
        self._stream.external(digest, size)
        return External(digest, size)


class _StoredTar:
    """A tar out of its split stream: bodies are the objects that it names."""

    def __init__(self, stream: SplitStream) -> None:
        self._records = stream.records()
        self._inline = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        while len(self._inline) - self._at < size:
            record = next(self._records, b"")
            if isinstance(record, VerityDigest):
                raise FormatError("the layer's stream has an object where the tar has none")
            if not record:
                break
            self._inline, self._at = self._inline[self._at :] + record, 0
        data = self._inline[self._at : self._at + size]
        self._at += len(data)
        return data

    def body(self, size: int) -> External:
        record = next(self._records, None) if self._at == len(self._inline) else None
        if not isinstance(record, VerityDigest):
            raise FormatError("the layer's stream lacks the object of a file")
        return External(record, size)


def _exactly(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    for piece in pieces:
        size -= len(piece)
        yield piece
    if size:
        raise FormatError("the layer ends within a file")


def has_layer(repository: Repository, diff_id: OciDigest) -> bool:
    digest = repository.stream_digest(stream_name(diff_id))
    return digest is not None and repository.has_object(digest)


def stage_layer(repository: Repository, diff_id: OciDigest, read: Reader) -> tuple[list[Entry], ObjectBatch]:
    """Unpack a layer's tar and return its entries, and the objects to commit under its diff_id.

    `read` raises at the end of the tar if it is not what `diff_id` promises; then nothing is left.
    """
    stream = SplitStreamWriter(LAYER, repository.algorithm)
    batch = ObjectBatch(repository)
    try:
        tar = _StoringTar(read, batch, stream)
        entries = list(read_tar(tar))
        # What follows the end marker belongs to the layer's bytes, though not to its files.
        while tar.take(PIECE):
            pass
        batch.link_stream(stream_name(diff_id), batch.add(stream.finish()))
    except BaseException:
        batch.discard()
        raise
    return entries, batch


def read_layer(repository: Repository, diff_id: OciDigest) -> Iterator[Entry]:
    """Yield the entries of a stored layer."""
    stream = repository.read_stream(stream_name(diff_id))
    if stream.content_type != LAYER:
        raise StoreError(f"the stream of layer {diff_id} does not hold a layer")
    return read_tar(_StoredTar(stream))


def layer_tar(repository: Repository, diff_id: OciDigest) -> Iterator[bytes]:
    """Yield the tar of a stored layer; `DigestError` at its end if it is another one than was stored."""
    hasher = hashlib.new(diff_id.algorithm)
    for record in repository.read_stream(stream_name(diff_id)).records():
        piece = repository.read_object(record) if isinstance(record, VerityDigest) else record
        hasher.update(piece)
        yield piece
    if hasher.hexdigest() != diff_id.hex:
        raise DigestError(f"the store gives layer {diff_id} back with other bytes", hint="run `oci2boot fsck`")
