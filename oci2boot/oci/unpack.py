"""From a layer's blob to its tar: read, hashed and inflated in a thread of its own, and checked before its end."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import Final

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError, FormatError, LimitError
from oci2boot.oci.blob import Blob
from oci2boot.oci.inflate import PIECE, inflate
from oci2boot.oci.manifest import Layer

QUEUE_PIECES: Final = 8
"""Pieces of plain tar, up to 1 MiB each, between the thread and its reader."""
CLOSING_SECONDS: Final = 1.0

Progress = Callable[[Layer, int], None]
"""Told, from the layer's thread, how many bytes of the blob have been read so far."""


def plain_pieces(
    blob: Blob, layer: Layer, *, max_size: int | None = None, progress: Progress | None = None
) -> Iterator[bytes]:
    """Yield a layer's tar in pieces of up to 1 MiB; ends only after blob and tar were found to be what was promised.

    A tar of more than `max_size` bytes is a `LimitError`; gzip bombs are one anyway.
    """
    what = f"layer {layer.digest}"
    count = size = 0

    def read(wanted: int) -> bytes:
        nonlocal count
        data = blob.read(wanted)
        count += len(data)
        if progress:
            progress(layer, count)
        return data

    tar_hash = hashlib.new(layer.diff_id.algorithm)
    try:
        for piece in inflate(read, layer.compression):
            size += len(piece)
            if max_size is not None and size > max_size:
                raise LimitError(f"the tar in it has more than the {max_size} bytes allowed")
            tar_hash.update(piece)
            yield piece
    except (FormatError, LimitError) as error:
        raise type(error)(f"{what} cannot be unpacked: {error.message}", hint=error.hint) from error
    found = OciDigest(layer.diff_id.algorithm, tar_hash.hexdigest())
    if found != layer.diff_id:
        raise DigestError(f"{what} holds a tar of digest {found}, the config promises {layer.diff_id}")


class _End:
    """The last thing in the queue: the tar's end, or why there is no more."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Uncompressed:
    """A layer's tar, to be read by one thread while another one decompresses ahead; a context manager.

    The layer is genuine only once `read` has returned nothing: until then no result may be named.
    """

    def __init__(
        self, blob: Blob, layer: Layer, *, max_size: int | None = None, progress: Progress | None = None
    ) -> None:
        self._blob = blob
        self._pieces = plain_pieces(blob, layer, max_size=max_size, progress=progress)
        self._queue: Queue[bytes | _End] = Queue(QUEUE_PIECES)
        self._stopped = False
        self._rest = b""
        self._end: _End | None = None
        self._thread = Thread(target=self._fill, name=f"layer {layer.digest.hex[:12]}", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            with self._blob:
                for piece in self._pieces:
                    self._queue.put(piece)
                    if self._stopped:
                        break
        except BaseException as error:  # the reader must know
            self._queue.put(_End(error))
        else:
            self._queue.put(_End(None))

    def read(self, size: int = PIECE) -> bytes:
        """Return up to `size` bytes; none only after all of the layer was found right, else what is wrong is raised."""
        piece = self._rest or self._next()
        self._rest = piece[size:]
        return piece[:size]

    def _next(self) -> bytes:
        if self._end is None:
            piece = self._queue.get()
            if isinstance(piece, bytes):
                return piece
            self._end = piece
        if self._end.error:
            raise self._end.error
        return b""

    def finish(self) -> None:
        """Read what is left, for its digests."""
        while self.read(PIECE):
            pass

    def close(self) -> None:
        """Stop, wherever it is. The thread closes the blob and ends at once, unless a stalled network holds it."""
        self._stopped = True
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(CLOSING_SECONDS)

    def __enter__(self) -> "Uncompressed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
