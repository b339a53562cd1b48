"""Registries that break off, forget, redirect and lie: an HTTP server that does what it is told."""

import socket
import threading
import time
from pathlib import Path

import pytest

from oci2boot.errors import DigestError, Error, SourceError
from oci2boot.oci import client
from oci2boot.oci.manifest import Platform
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.oci.unpack import Uncompressed
from tests.flips import flipped
from tests.oci.faults import INSECURE, big_blob, breaking_every, once, pull, serving, status
from tests.oci.layouts import MANIFEST, Layout, digest, platform
from tests.oci.registries import Fake, Handler

pytestmark = pytest.mark.usefixtures("pauses")


def test_a_broken_connection_is_taken_up_where_it_broke(fake: Fake) -> None:
    """P.1: resume of a broken blob."""
    fake.respond = breaking_every(500_000)
    pull(fake)
    starts = [request.headers["Range"] for request in fake.requests if "Range" in request.headers]
    assert starts[0] == "bytes=500000-"
    assert len(starts) >= 5


def test_a_registry_that_ignores_ranges_is_pulled_all_the_same(fake: Fake) -> None:
    fake.respond = breaking_every(500_000, ranges=False)
    pull(fake)
    starts = [request.headers["Range"] for request in fake.requests if "Range" in request.headers]
    assert starts[:2] == ["bytes=1000000-", "bytes=1500000-"]


def test_a_registry_that_never_gets_on_is_given_up(fake: Fake) -> None:
    def respond(handler: Handler) -> bool:
        data = big_blob(handler)
        if data is None:
            return False
        handler.send(206 if "Range" in handler.headers else 200, b"", promised=len(data))
        return True

    fake.respond = respond
    with pytest.raises(SourceError, match="broke off 16 times"):
        pull(fake)
    assert len(fake.requests) < 30


def test_a_resumed_blob_from_another_place_is_refused(fake: Fake) -> None:
    def respond(handler: Handler) -> bool:
        data = big_blob(handler)
        if data is None:
            return False
        if "Range" in handler.headers:
            handler.send(206, data[7:], {"Content-Range": f"bytes 7-{len(data) - 1}/{len(data)}"})
        else:
            handler.send(200, data[:1000], promised=len(data))
        return True

    fake.respond = respond
    with pytest.raises(SourceError, match="continues elsewhere"):
        pull(fake)


def test_too_many_requests_waits_as_long_as_asked(fake: Fake, pauses: list[float]) -> None:
    fake.respond = once(status(429, Retry_After="7"), "/manifests/", 2)
    pull(fake)
    assert pauses == [7.0, 7.0]


def test_no_server_makes_us_wait_for_a_day(fake: Fake, pauses: list[float]) -> None:
    fake.respond = once(status(503, Retry_After="86400"), "/blobs/")
    pull(fake)
    assert pauses == [client.LONGEST_PAUSE]


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_passing_trouble_of_a_server_is_sat_out(fake: Fake, code: int) -> None:
    fake.respond = once(status(code), "/", 2)
    pull(fake)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(503, "answers with status 503"), (429, "limits how often"), (403, "wants a login"), (418, "418")],
)
def test_lasting_trouble_is_one_sentence(fake: Fake, code: int, sentence: str) -> None:
    fake.respond = once(status(code), "/manifests/", 100)
    with pytest.raises(SourceError, match=sentence):
        pull(fake)
    assert len(fake.paths("/manifests/")) <= client.ATTEMPTS


def test_a_blob_that_is_not_what_its_digest_says_is_refused(fake: Fake) -> None:
    fake.respond = serving(lambda data: flipped(data, -1), "/blobs/")
    with pytest.raises(DigestError, match="has the digest"):
        pull(fake)


@pytest.mark.parametrize(
    ("edit", "sentence"), [(lambda data: data[:-5], "cut short"), (lambda data: data + b"x", "too long")]
)
def test_a_blob_of_another_length_is_refused_before_it_is_read(fake: Fake, edit: object, sentence: str) -> None:
    fake.respond = serving(edit, "/blobs/")
    with pytest.raises(DigestError, match=sentence):
        pull(fake)


def test_a_manifest_that_is_not_what_was_asked_for_is_refused(fake: Fake) -> None:
    assert fake.layout
    fake.respond = serving(lambda data: data + b" ", "/manifests/")
    name = f"some/image@{fake.layout.manifests[0]['digest']}"
    with pytest.raises(DigestError, match="is promised"):
        pull(fake, name=name)


def test_a_manifest_of_another_size_than_its_index_says_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.tag(layout.index([{**layout.image([]), **platform("amd64"), "size": 5}]))
    options = SourceOptions(platform=Platform("linux", "amd64"), tls_verify=False)

    def respond(handler: Handler) -> bool:
        if "/manifests/sha256:" not in handler.path:
            return False
        data = layout.blob_path(handler.path.rpartition("/")[2]).read_bytes()
        handler.send(200, data, {"Content-Type": MANIFEST})
        return True

    with Fake(layout, respond).serving() as fake, pytest.raises(DigestError, match="its descriptor promises 5"):
        pull(fake, options)


def test_a_manifest_under_another_content_digest_is_refused(fake: Fake) -> None:
    def respond(handler: Handler) -> bool:
        assert handler.fake.layout
        descriptor = handler.fake.layout.manifests[0]
        headers = {"Content-Type": descriptor["mediaType"], "Docker-Content-Digest": digest(b"other")}
        handler.send(200, handler.fake.layout.blob_path(descriptor["digest"]).read_bytes(), headers)
        return True

    fake.respond = once(respond, "/manifests/")
    with pytest.raises(DigestError, match=digest(b"other")):
        pull(fake)


def test_a_manifest_without_end_is_cut_off(fake: Fake) -> None:
    fake.respond = serving(lambda _: bytes(5 << 20), "/manifests/")
    with pytest.raises(Error, match="more than 4194304 bytes"):
        pull(fake)


def test_a_web_page_is_no_manifest(fake: Fake) -> None:
    def respond(handler: Handler) -> bool:
        handler.send(200, b"<html>Welcome</html>", {"Content-Type": "text/html"})
        return True

    fake.respond = once(respond, "/manifests/")
    with pytest.raises(Error, match="not valid JSON"):
        pull(fake)


def test_a_body_that_the_server_encodes_is_not_taken_for_the_blob(fake: Fake) -> None:
    """The blob's digest is over its own bytes, whatever Content-Encoding says."""
    import gzip

    def respond(handler: Handler) -> bool:
        data = big_blob(handler)
        if data is None:
            return False
        assert handler.headers["Accept-Encoding"] == "identity"
        handler.send(200, gzip.compress(data), {"Content-Encoding": "gzip"})
        return True

    fake.respond = respond
    with pytest.raises(DigestError):
        pull(fake)


def test_a_stalled_registry_holds_nobody_who_stops(layout: Layout) -> None:
    """Who closes a layer's tar waits a second at most, though the network waits longer."""
    stop = threading.Event()

    def respond(handler: Handler) -> bool:
        if big_blob(handler) is None:
            return False
        stop.wait(20)
        handler.close_connection = True
        return True

    with Fake(layout, respond).serving() as fake:
        with open_source(Reference.parse(f"docker://{fake.address}/some/image:v"), INSECURE) as source:
            layer = source.fetch().layers[0]
            started = time.monotonic()
            with Uncompressed(source.open(layer), layer):
                pass
            assert time.monotonic() - started < 5
        stop.set()


def test_a_connection_that_dies_without_a_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"docker://127.0.0.1:{silent.getsockname()[1]}/x:v"
        with open_source(Reference.parse(name), INSECURE) as source, pytest.raises(SourceError, match="timed out"):
            source.fetch()
