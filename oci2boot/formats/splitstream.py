"""Split streams: a byte stream whose large parts are objects of the store. composefs-rs, doc/splitstream.md.

A stream keeps a tar exactly: headers, padding and small files inline (zstd), bodies by digest. Named references
tie streams together; a collector follows both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import zstandard

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.binary import U8, U16, U64, Record

MAGIC: Final = b"SplitStream"
BLOCK_BITS: Final = 12
MAX_INLINE: Final = 1 << 30
"""Inline bytes of one stream; the headers of five million files take less."""
MAX_NAMED_REFS: Final = 1 << 20
"""Bytes of the table of named references."""
_ALGORITHMS: Final[dict[int, Hash]] = {1: "sha256", 2: "sha512"}
_NUMBERS: Final = {name: number for number, name in _ALGORITHMS.items()}
_LEVEL: Final = 3
_PIECE: Final = 1 << 18

LAYER: Final = b"ocilayer"
CONFIG: Final = b"ociconfg"
MANIFEST: Final = b"ocimanif"
BLOB: Final = b"oci_blob"


@dataclass(frozen=True, slots=True)
class _Header(Record):
    magic: Annotated[bytes, "11s"]
    version: U8
    flags: U16
    algorithm: U8
    block_bits: U8
    info_start: U64
    info_end: U64


@dataclass(frozen=True, slots=True)
class _Info(Record):
    stream_refs_start: U64
    stream_refs_end: U64
    object_refs_start: U64
    object_refs_end: U64
    stream_start: U64
    stream_end: U64
    named_refs_start: U64
    named_refs_end: U64
    content_type: Annotated[bytes, "8s"]
    stream_size: U64
    """Bytes of the stream, inline and external together."""


class SplitStreamWriter:
    """Takes a stream piece by piece and gives the bytes of its split stream."""

    def __init__(self, content_type: bytes, algorithm: Hash) -> None:
        self._content_type = content_type
        self._algorithm: Hash = algorithm
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self._compressed: list[bytes] = []
        self._inline: list[bytes] = []
        self._objects: dict[VerityDigest, int] = {}
        self._named: dict[str, VerityDigest] = {}
        self._size = 0

    def inline(self, data: bytes) -> None:
        self._inline.append(data)

    def external(self, digest: VerityDigest, size: int) -> None:
        self._flush()
        self._size += size
        index = self._objects.setdefault(digest, len(self._objects))
        self._emit(index.to_bytes(8, "little"))

    def name(self, name: str, digest: VerityDigest) -> None:
        """Add a named reference to another stream or to an image."""
        self._named[name] = digest

    def _emit(self, data: bytes) -> None:
        if piece := self._compressor.compress(data):
            self._compressed.append(piece)

    def _flush(self) -> None:
        # One record for everything between two objects: readers want a tar header whole.
        if data := b"".join(self._inline):
            self._emit((-len(data)).to_bytes(8, "little", signed=True))
            self._emit(data)
            self._size += len(data)
        self._inline.clear()

    def finish(self) -> bytes:
        self._flush()
        stream = b"".join([*self._compressed, self._compressor.flush()])
        stream_refs = sorted(set(self._named.values()), key=lambda digest: digest.raw)
        number = {digest: index for index, digest in enumerate(stream_refs)}
        named = b"".join(f"{number[digest]}:{name}".encode() + b"\0" for name, digest in sorted(self._named.items()))
        sections = [
            b"".join(digest.raw for digest in stream_refs),
            b"".join(digest.raw for digest in self._objects),
            zstandard.ZstdCompressor(level=_LEVEL).compress(named),
            stream,
        ]
        info_start = _Header.layout().size
        info_end = info_start + _Info.layout().size
        starts = [info_end]
        for section in sections:
            starts.append(starts[-1] + len(section))
        header = _Header(MAGIC, 0, 0, _NUMBERS[self._algorithm], BLOCK_BITS, info_start, info_end)
        info = _Info(
            *(starts[0], starts[1]),
            *(starts[1], starts[2]),
            *(starts[3], starts[4]),
            *(starts[2], starts[3]),
            self._content_type,
            self._size,
        )
        return b"".join([header.pack(), info.pack(), *sections])


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStream:
    """A stored stream, checked as far as its tables; `records` reads the rest."""

    content_type: bytes
    algorithm: Hash
    size: int
    objects: tuple[VerityDigest, ...]
    """Every object that the stream holds, without repeats."""
    named: Mapping[str, VerityDigest]
    _stream: bytes

    @classmethod
    def unpack(cls, data: bytes) -> "SplitStream":
        """Read a split stream. A bad one is a `FormatError`."""
        header = _Header.unpack(data)
        if (header.magic, header.version) != (MAGIC, 0) or header.flags:
            raise FormatError("not a split stream of version 0")
        algorithm = _ALGORITHMS.get(header.algorithm)
        if algorithm is None or header.block_bits != BLOCK_BITS:
            raise FormatError(f"a split stream of an unknown hash ({header.algorithm}, block 2^{header.block_bits})")
        if header.info_end - header.info_start < _Info.layout().size:
            raise FormatError("the split stream's table is too short")
        info = _Info.unpack(data, header.info_start)

        def section(start: int, end: int) -> bytes:
            if not 0 <= start <= end <= len(data):
                raise FormatError("a section of the split stream lies outside it")
            return data[start:end]

        def digests(raw: bytes) -> tuple[VerityDigest, ...]:
            length = 32 if algorithm == "sha256" else 64
            if len(raw) % length:
                raise FormatError("the split stream's references are cut short")
            return tuple(VerityDigest(algorithm, raw[at : at + length]) for at in range(0, len(raw), length))

        stream_refs = digests(section(info.stream_refs_start, info.stream_refs_end))
        named = _unpack_named(section(info.named_refs_start, info.named_refs_end), stream_refs)
        objects = digests(section(info.object_refs_start, info.object_refs_end))
        stream = section(info.stream_start, info.stream_end)
        return cls(
            content_type=info.content_type,
            algorithm=algorithm,
            size=info.stream_size,
            objects=objects,
            named=named,
            _stream=stream,
        )

    def records(self) -> Iterator[bytes | VerityDigest]:
        """Yield the stream in order: inline bytes, and digests of objects that stand for their content."""
        reader = _Inflated(self._stream)
        while head := reader.read(8, whole=False):
            number = int.from_bytes(head, "little", signed=True)
            if number < 0:
                yield reader.read(-number)
            elif number < len(self.objects):
                yield self.objects[number]
            else:
                raise FormatError("the split stream names an object that it does not list")

    def sole_object(self) -> VerityDigest:
        """Return the one object that is the whole content, as of manifests and configs."""
        records = list(self.records())
        if len(records) == 1 and isinstance(records[0], VerityDigest):
            return records[0]
        raise FormatError("the split stream is not one object")


class _Inflated:
    """Reads exact counts out of zstd frames, never more than `MAX_INLINE` in all."""

    def __init__(self, compressed: bytes) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._reader = decompressor.stream_reader(compressed, read_across_frames=True)
        self._buffer = b""
        self._at = 0
        self._total = 0

    def read(self, size: int, *, whole: bool = True) -> bytes:
        """Return `size` bytes; at the end of the stream, none, where that is allowed."""
        if size > MAX_INLINE:
            raise LimitError(f"a split stream with an inline record of {size} bytes: the limit is {MAX_INLINE}")
        if len(self._buffer) - self._at < size:
            pieces = [self._buffer[self._at :]]
            have = len(pieces[0])
            while have < size:
                try:
                    piece = self._reader.read(_PIECE)
                except zstandard.ZstdError as error:
                    raise FormatError(f"the split stream does not decompress: {error}") from error
                if not piece:
                    break
                self._total += len(piece)
                if self._total > MAX_INLINE:
                    raise LimitError(f"a split stream of more than {MAX_INLINE} inline bytes")
                pieces.append(piece)
                have += len(piece)
            self._buffer, self._at = b"".join(pieces), 0
            if have < size:
                if whole or have:
                    raise FormatError("the split stream is cut short")
                return b""
        data = self._buffer[self._at : self._at + size]
        self._at += size
        return data


def _unpack_named(compressed: bytes, stream_refs: tuple[VerityDigest, ...]) -> dict[str, VerityDigest]:
    try:
        text = zstandard.ZstdDecompressor().stream_reader(compressed).read(MAX_NAMED_REFS + 1)
    except zstandard.ZstdError as error:
        raise FormatError(f"the split stream's named references do not decompress: {error}") from error
    if len(text) > MAX_NAMED_REFS:
        raise LimitError(f"a split stream with more than {MAX_NAMED_REFS} bytes of named references")
    named = {}
    for item in text.split(b"\0")[:-1]:
        index, colon, name = item.partition(b":")
        if not colon or not index.isdigit() or len(index) > 9 or int(index) >= len(stream_refs):
            raise FormatError(f"not a named reference of the split stream: {item[:80]!r}")
        named[name.decode(errors="surrogateescape")] = stream_refs[int(index)]
    return named
