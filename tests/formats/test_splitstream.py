"""Split streams. Known answers are streams that `cfsctl` wrote; that it reads ours is shown in tests/store."""

import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, FormatError
from oci2boot.formats import fsverity
from oci2boot.formats.splitstream import BLOB, LAYER, MANIFEST, SplitStream, SplitStreamWriter
from tests.flips import flipped
from tests.witness import VECTORS, program

LAYOUT = VECTORS / "oci/plain"


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return {stream name: bytes} of an image that cfsctl pulled."""
    repo = tmp_path_factory.mktemp("cfsctl") / "repo"
    cfsctl = program("cfsctl")
    subprocess.run([cfsctl, "init", "--algorithm", "fsverity-sha256-12", "--insecure", repo], check=True)
    subprocess.run([cfsctl, "--repo", repo, "oci", "pull", f"oci:{LAYOUT}:v", "v"], check=True)
    return {path.name: path.read_bytes() for path in (repo / "streams").iterdir() if path.name != "refs"}


def test_a_layer_that_cfsctl_stored_is_its_tar_again(streams: dict[str, bytes]) -> None:
    """P.2: the exact tar of each layer comes back out of the store."""
    ((name, data),) = [(name, data) for name, data in streams.items() if name.startswith("oci-layer-sha256:")]
    tar = (LAYOUT / "blobs/sha256" / name.removeprefix("oci-layer-sha256:")).read_bytes()
    stream = SplitStream.unpack(data)
    assert stream.content_type == LAYER
    assert stream.size == len(tar)
    rest = tar
    for record in stream.records():
        if isinstance(record, bytes):
            assert rest.startswith(record)
            rest = rest[len(record) :]
        else:
            size = next(size for size in range(len(rest)) if fsverity.measure(rest[:size]) == record)
            rest = rest[size:]
    assert rest == b""


def test_a_manifest_that_cfsctl_stored_names_its_config_and_layers(streams: dict[str, bytes]) -> None:
    (data,) = [data for name, data in streams.items() if name.startswith("oci-manifest-")]
    stream = SplitStream.unpack(data)
    assert stream.content_type == MANIFEST
    assert stream.sole_object() in stream.objects
    assert {key.split(":")[0] for key in stream.named} == {"config", "sha256"}


DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: VerityDigest("sha256", raw))
RECORDS = st.lists(st.one_of(st.binary(min_size=1, max_size=50), DIGESTS), max_size=20)


@given(RECORDS, st.dictionaries(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), DIGESTS))
def test_what_is_written_is_read_back(records: list[bytes | VerityDigest], named: dict[str, VerityDigest]) -> None:
    writer = SplitStreamWriter(BLOB, "sha256")
    merged: list[bytes | VerityDigest] = []
    for record in records:
        if isinstance(record, bytes):
            writer.inline(record)
            if merged and isinstance(merged[-1], bytes):
                record = merged.pop() + record  # type: ignore[operator]
        else:
            writer.external(record, 1000)
        merged.append(record)
    for name, digest in named.items():
        writer.name(name, digest)
    stream = SplitStream.unpack(writer.finish())
    assert list(stream.records()) == merged
    assert stream.named == named
    assert stream.size == sum(len(record) if isinstance(record, bytes) else 1000 for record in merged)


def written() -> bytes:
    writer = SplitStreamWriter(LAYER, "sha256")
    writer.inline(b"head" * 100)
    writer.external(fsverity.measure(b"x"), 1)
    writer.inline(b"tail")
    writer.name("config:x", fsverity.measure(b"y"))
    return writer.finish()


@given(st.data())
def test_damage_is_an_error_of_ours_or_no_harm(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(written()) - 1))
    stream = flipped(written(), at, data.draw(st.integers(1, 255)))
    cut = data.draw(st.integers(0, len(stream)))
    for damaged in (stream, stream[:cut]):
        with suppress(Error):
            list(SplitStream.unpack(damaged).records())


def test_a_stream_cut_short_is_refused() -> None:
    with pytest.raises(FormatError, match="outside"):
        SplitStream.unpack(written()[:-1])
