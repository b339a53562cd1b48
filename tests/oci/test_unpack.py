"""Layers to tars: gzip, zstd and plain, whole and damaged; compressed by the programs themselves."""

import gzip
import hashlib
import io
import random
import subprocess
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError, Error, FormatError, LimitError, SourceError
from oci2boot.oci import inflate as inflate_module
from oci2boot.oci.blob import Blob, RawStream
from oci2boot.oci.inflate import inflate
from oci2boot.oci.manifest import Compression, Layer
from oci2boot.oci.unpack import QUEUE_PIECES, Uncompressed, plain_pieces
from tests.flips import flipped
from tests.oci.layouts import LAYER
from tests.witness import program

PLAIN = random.Random(1).randbytes(300_000) + b"text " * 400_000
SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}


def layer_of(blob: bytes, plain: bytes, compression: Compression, **changes: Any) -> Layer:
    values = {"size": len(blob), "digest": OciDigest.of(blob), "diff_id": OciDigest.of(plain), **changes}
    return Layer(LAYER + SUFFIX[compression], values["digest"], values["size"], {}, values["diff_id"])


def uncompressed(data: bytes, layer: Layer, **options: Any) -> Uncompressed:
    return Uncompressed(Blob(io.BytesIO(data), layer, f"layer {layer.digest}"), layer, **options)


def unpack(data: bytes, layer: Layer, **options: Any) -> bytes:
    with uncompressed(data, layer, **options) as tar:
        return b"".join(iter(tar.read, b""))


def by_program(*argv: str) -> bytes:
    return subprocess.run([program(argv[0]), *argv[1:]], input=PLAIN, capture_output=True, check=True).stdout


def members(pieces: int) -> Iterator[bytes]:
    step = -(-len(PLAIN) // pieces)
    for at in range(0, len(PLAIN), step):
        yield PLAIN[at : at + step]


def skippable(data: bytes) -> bytes:
    """A frame that carries no data, as zstd:chunked has at its end. RFC 8878, section 3.1.2."""
    return (0x184D2A53).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


GOOD: dict[str, tuple[Compression, bytes]] = {
    "plain": ("none", PLAIN),
    "gzip": ("gzip", by_program("gzip", "-6")),
    "gzip with a name": (
        "gzip",
        gzip.compress(PLAIN)[:3] + b"\x08" + gzip.compress(PLAIN)[4:10] + b"n\0" + gzip.compress(PLAIN)[10:],
    ),
    "gzip stored": ("gzip", gzip.compress(PLAIN, 0)),
    "gzip of 2 members": ("gzip", b"".join(map(gzip.compress, members(2)))),
    # estargz has one for each file
    "gzip of 5000 members": ("gzip", b"".join(map(gzip.compress, members(5000)))),
    "gzip with empty members": ("gzip", gzip.compress(b"") * 3 + gzip.compress(PLAIN) + gzip.compress(b"") * 20_000),
    "zstd": ("zstd", by_program("zstd", "-3")),
    "zstd with checksum": ("zstd", by_program("zstd", "-3", "--check")),
    "zstd without": ("zstd", by_program("zstd", "-1", "--no-check")),
    "zstd from a pipe, no size": ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(PLAIN)),
    "zstd of a long window": ("zstd", by_program("zstd", "-3", "--long=27")),
    "zstd of 2 frames": ("zstd", b"".join(map(zstandard.compress, members(2)))),
    "zstd:chunked": ("zstd", b"".join(map(zstandard.compress, members(900))) + skippable(b"toc" * 1000)),
    "zstd after a skippable frame": ("zstd", skippable(b"") + zstandard.compress(PLAIN)),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_layer_unpacks_to_its_tar(name: str) -> None:
    """P.1: gzip, zstd, plain layers."""
    compression, blob = GOOD[name]
    assert unpack(blob, layer_of(blob, PLAIN, compression)) == PLAIN


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_empty_tar_is_one_too(compression: Compression) -> None:
    blob = {"none": b"", "gzip": gzip.compress(b""), "zstd": zstandard.compress(b"")}[compression]
    assert unpack(blob, layer_of(blob, b"", compression)) == b""


def test_sha512_digests_are_checked_as_well() -> None:
    blob = gzip.compress(PLAIN)
    digests = {"digest": OciDigest.of(blob, "sha512"), "diff_id": OciDigest.of(PLAIN, "sha512")}
    assert unpack(blob, layer_of(blob, PLAIN, "gzip", **digests)) == PLAIN
    digests["diff_id"] = OciDigest.of(b"", "sha512")
    with pytest.raises(DigestError, match="the config promises"):
        unpack(blob, layer_of(blob, PLAIN, "gzip", **digests))


GZIP = gzip.compress(PLAIN)
ZSTD = zstandard.compress(PLAIN)
FRAME = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 300_000)

# Such blobs agree with their digests: it is their maker who is wrong.
DAMAGED: dict[str, tuple[Compression, bytes]] = {
    "gzip cut in the data": ("gzip", GZIP[:1000]),
    "gzip cut in the trailer": ("gzip", GZIP[:-3]),
    "gzip cut in the header": ("gzip", GZIP[:5]),
    "gzip that is empty": ("gzip", b""),
    "gzip with zeros behind": ("gzip", GZIP + bytes(512)),
    "gzip with one zero behind": ("gzip", GZIP + b"\0"),
    "gzip with garbage behind": ("gzip", GZIP + b"garbage"),
    "gzip with half a member behind": ("gzip", GZIP + GZIP[:100]),
    "gzip with a wrong checksum": ("gzip", GZIP[:-8] + bytes(4) + GZIP[-4:]),
    "gzip with a wrong size": ("gzip", GZIP[:-4] + bytes(4)),
    "plain called gzip": ("gzip", PLAIN),
    "zstd called gzip": ("gzip", ZSTD),
    "zlib called gzip": ("gzip", zlib.compress(PLAIN)),
    "zstd cut in a block": ("zstd", ZSTD[:1000]),
    "zstd cut in the header": ("zstd", ZSTD[:5]),
    "zstd cut between blocks": ("zstd", FRAME[: 4 + 2 + 3 + int.from_bytes(FRAME[6:9], "little") // 8]),
    "zstd cut in the second frame": ("zstd", ZSTD + ZSTD[:-1]),
    "zstd cut in the checksum": ("zstd", by_program("zstd", "--check")[:-2]),
    "zstd that is empty": ("zstd", b""),
    "zstd of skippable frames only": ("zstd", skippable(b"x")),
    "zstd cut in a skippable frame": ("zstd", ZSTD + skippable(b"x" * 100)[:-1]),
    "zstd with garbage behind": ("zstd", ZSTD + b"garbage"),
    "zstd with zeros behind": ("zstd", ZSTD + bytes(3)),
    "zstd with a wrong checksum": ("zstd", by_program("zstd", "--check")[:-4] + b"abcd"),
    "zstd of a window over 128 MiB": ("zstd", b"\x28\xb5\x2f\xfd\x00\x90\x01\0\0"),
    "gzip called zstd": ("zstd", GZIP),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_compression_is_refused(name: str) -> None:
    compression, blob = DAMAGED[name]
    # What a careless decompressor would give is promised, so that no diff_id saves the day.
    for plain in (PLAIN, b"", b"x" * (128 << 10)):
        with pytest.raises(FormatError, match="cannot be unpacked"):
            unpack(blob, layer_of(blob, plain, compression))


def test_a_zstd_frame_cut_between_its_blocks_is_silently_accepted_by_the_library() -> None:
    """The reason for following frames; when this fails, that can go."""
    _, cut = DAMAGED["zstd cut between blocks"]
    assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(cut)).read() == b"x" * (128 << 10)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_blob_of_another_digest_is_refused_by_name(compression: Compression) -> None:
    blob = {"none": PLAIN, "gzip": GZIP, "zstd": ZSTD}[compression]
    layer = layer_of(blob, PLAIN, compression, digest=OciDigest.of(b"other"))
    with pytest.raises(DigestError, match=f"layer {layer.digest} has the digest {OciDigest.of(blob)}"):
        unpack(blob, layer)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_blob_cut_short_or_too_long_is_refused_by_name(compression: Compression) -> None:
    blob = {"none": PLAIN, "gzip": GZIP, "zstd": ZSTD}[compression]
    layer = layer_of(blob, PLAIN, compression)
    with pytest.raises(DigestError, match=rf"layer {layer.digest} is cut short: {len(blob) - 10} of {len(blob)} bytes"):
        unpack(blob[:-10], layer)
    with pytest.raises(DigestError, match="longer than"):
        unpack(blob + b"x", layer)


def test_a_tar_of_another_diff_id_is_refused() -> None:
    layer = layer_of(GZIP, b"other", "gzip")
    with pytest.raises(DigestError, match=f"holds a tar of digest {OciDigest.of(PLAIN)}"):
        unpack(GZIP, layer)


def test_the_last_piece_of_a_wrong_blob_is_never_handed_on() -> None:
    layer = layer_of(PLAIN, PLAIN, "none", digest=OciDigest.of(b"other"))
    blob = Blob(io.BytesIO(PLAIN), layer, "it")
    seen: list[bytes] = []
    with pytest.raises(DigestError):
        seen.extend(iter(lambda: blob.read(100_000), b""))
    assert len(b"".join(seen)) < len(PLAIN)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["gzip", "zstd"]), st.data())
def test_any_damage_is_an_error_of_ours(compression: Compression, data: st.DataObject) -> None:
    plain = b"some text, " * 2000
    blob = gzip.compress(plain) * 2 if compression == "gzip" else zstandard.compress(plain) * 2
    for _ in range(data.draw(st.integers(1, 3))):
        blob = flipped(blob, data.draw(st.integers(0, len(blob) - 1)), data.draw(st.integers(1, 255)))
    damaged = blob[: data.draw(st.integers(0, len(blob)))]
    try:
        found = unpack(damaged, layer_of(damaged, plain * 2, compression))
    except Error:
        return
    assert found == plain * 2  # damage to a header's time or name


@given(st.binary(max_size=5000), st.sampled_from(["gzip", "zstd"]), st.integers(1, 700))
@settings(max_examples=60, deadline=None)
def test_what_is_compressed_comes_back_however_it_is_read(data: bytes, compression: Compression, step: int) -> None:
    blob = gzip.compress(data) if compression == "gzip" else zstandard.compress(data)
    stream = io.BytesIO(blob)
    pieces = inflate(lambda size: stream.read(min(size, step)), compression)
    assert b"".join(pieces) == data


class Zeros(RawStream):
    """A gzip member of zeros that never ends, 1000 times smaller than what it holds."""

    def __init__(self, compression: str) -> None:
        if compression == "gzip":
            compressor = zlib.compressobj(9, wbits=31)
            self._head = compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
            self._unit = compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
        else:
            self._head = b"\x28\xb5\x2f\xfd\x00\x58"  # no size, window of 2 MiB
            self._unit = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # a block of 128 KiB of zeros
        self._left = self._head
        self.read_bytes = 0

    def read(self, size: int, /) -> bytes:
        while len(self._left) < size:
            self._left += self._unit * 1000
        data, self._left = self._left[:size], self._left[size:]
        self.read_bytes += size
        return data

    def close(self) -> None:
        pass


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_is_stopped_and_takes_little_memory(compression: Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate_module, "MAX_FREE_RATIO", 64 << 20)
    layer = layer_of(b"", b"", compression, size=1 << 40)
    stream = Zeros(compression)
    limit = 256 << 20 if compression == "zstd" else None
    size = 0
    tracemalloc.start()
    try:
        with Uncompressed(Blob(stream, layer, "it"), layer, max_size=limit) as tar, pytest.raises(LimitError):  # noqa: PT012
            for piece in iter(tar.read, b""):
                size += len(piece)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    # gzip: free up to a floor, then seen where the input of 256 KiB that is at work ends
    assert size <= (limit or (64 << 20) + (300 << 20))


def test_a_layer_of_mostly_zeros_below_the_floor_is_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = bytes(8 << 20)
    blob = gzip.compress(plain, 9)
    assert len(plain) > inflate_module.MAX_GZIP_RATIO * len(blob)
    assert unpack(blob, layer_of(blob, plain, "gzip")) == plain
    monkeypatch.setattr(inflate_module, "MAX_FREE_RATIO", 4 << 20)
    with pytest.raises(LimitError, match="a bomb"):
        unpack(blob, layer_of(blob, plain, "gzip"))


def test_a_cap_on_the_tar_is_kept_to_the_byte() -> None:
    layer = layer_of(GZIP, PLAIN, "gzip")
    assert unpack(GZIP, layer, max_size=len(PLAIN)) == PLAIN
    with pytest.raises(LimitError, match=f"{len(PLAIN) - 1} bytes allowed"):
        unpack(GZIP, layer, max_size=len(PLAIN) - 1)


def threads_of(layer: Layer) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"layer {layer.digest.hex[:12]}"]


class Endless(RawStream):
    def __init__(self) -> None:
        self.given = 0
        self.closed = False

    def read(self, size: int, /) -> bytes:
        self.given += size
        return bytes(size)

    def close(self) -> None:
        self.closed = True


def test_who_stops_early_leaves_no_thread_and_no_open_blob() -> None:
    stream = Endless()
    layer = layer_of(b"", b"", "none", size=1 << 40)
    with Uncompressed(Blob(stream, layer, "it"), layer) as tar:
        assert len(tar.read(1000)) == 1000
    assert threads_of(layer) == []
    assert stream.closed
    # one piece at the reader's, those in the queue, one at the thread's, and one while it was being emptied
    assert stream.given <= (QUEUE_PIECES + 3) << 20


def test_an_error_of_the_reader_comes_through_and_ends_the_thread() -> None:
    layer = layer_of(b"", b"", "none", size=1 << 40)
    tar = Uncompressed(Blob(Endless(), layer, "it"), layer)
    with pytest.raises(ZeroDivisionError), tar:
        raise ZeroDivisionError
    assert threads_of(layer) == []


class Broken(Endless):
    def read(self, size: int, /) -> bytes:
        if self.given > 100_000:
            raise SourceError("the network is gone")
        return super().read(size)


def test_an_error_of_the_source_is_raised_at_the_reader_again_and_again() -> None:
    layer = layer_of(b"", b"", "none", size=1 << 40)
    with Uncompressed(Blob(Broken(), layer, "it"), layer) as tar:
        for _ in range(2):
            with pytest.raises(SourceError, match="the network is gone"):
                tar.finish()


def test_progress_counts_the_bytes_of_the_blob() -> None:
    layer = layer_of(GZIP, PLAIN, "gzip")
    counts: list[int] = []
    with uncompressed(GZIP, layer, progress=lambda _, count: counts.append(count)) as tar:
        tar.finish()
    assert counts == sorted(counts)
    assert counts[-1] == len(GZIP)


def test_the_pieces_can_be_had_without_a_thread() -> None:
    layer = layer_of(ZSTD, PLAIN, "zstd")
    hashed = hashlib.sha256()
    for piece in plain_pieces(Blob(io.BytesIO(ZSTD), layer, "it"), layer):
        hashed.update(piece)
    assert hashed.digest() == hashlib.sha256(PLAIN).digest()


def test_reading_in_any_sizes_gives_the_same_bytes() -> None:
    layer = layer_of(GZIP, PLAIN, "gzip")
    sizes = random.Random(2)
    with uncompressed(GZIP, layer) as tar:
        assert b"".join(iter(lambda: tar.read(sizes.randrange(1, 70_000)), b"")) == PLAIN
