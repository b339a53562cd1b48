"""Registries that break off, forget, redirect and lie: an HTTP server that does what it is told."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oci2boot.errors import DigestError, Error, SourceError
from oci2boot.oci import client
from oci2boot.oci.image import Image
from oci2boot.oci.manifest import Platform
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.oci.unpack import Uncompressed
from tests.flips import flipped
from tests.oci.layouts import MANIFEST, Layout, digest, platform
from tests.oci.registries import Fake, Handler, Respond, authfile, basic

INSECURE = SourceOptions(tls_verify=False)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def fake(layout: Layout) -> Iterator[Fake]:
    with Fake(layout).serving() as running:
        yield running


def pull(fake: Fake, options: SourceOptions = INSECURE, name: str = "some/image:v") -> Image:
    with open_source(Reference.parse(f"docker://{fake.address}/{name}"), options) as source:
        image = source.fetch()
        for layer in image.layers:
            with Uncompressed(source.open(layer), layer) as tar:
                tar.finish()
        return image


def big_blob(handler: Handler) -> bytes | None:
    """The large layer, when it is what is asked for."""
    assert handler.fake.layout
    name = handler.path.rpartition("/")[2]
    path = handler.fake.layout.blob_path(name)
    if "/blobs/" in handler.path and path.exists() and path.stat().st_size > 1 << 20:
        return path.read_bytes()
    return None


def start_of(handler: Handler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def breaking_every(step: int, *, ranges: bool = True) -> Respond:
    def respond(handler: Handler) -> bool:
        data = big_blob(handler)
        if data is None:
            return False
        at = start_of(handler) if ranges else 0
        headers = {"Content-Range": f"bytes {at}-{len(data) - 1}/{len(data)}"} if at else {}
        if not ranges:
            # Each connection gets further than the last one.
            end = step * len(handler.fake.paths("/blobs/"))
            handler.send(200, data[:end], promised=len(data) if end < len(data) else None)
        elif at + step >= len(data):
            handler.send(206 if at else 200, data[at:], headers)
        else:
            handler.send(206 if at else 200, data[at : at + step], headers, promised=len(data) - at)
        return True

    return respond


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


class Tokens:
    """Bearer tokens that are good for so many requests each."""

    def __init__(self, uses: int, then: Respond = lambda _: False) -> None:
        self.uses = uses
        self.then = then
        self.left: dict[str, int] = {}
        self.lock = threading.Lock()

    def __call__(self, handler: Handler) -> bool:
        with self.lock:
            if handler.path.startswith("/token"):
                token = f"token{len(self.left)}"
                self.left[token] = self.uses
                handler.send(200, b'{"token": "%s", "expires_in": 60}' % token.encode())
                return True
            token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.left.get(token, 0) <= 0:
                return handler.challenge(
                    f'Bearer realm="http://{handler.fake.address}/token",service="x",'
                    'scope="repository:some/image:pull",error="invalid_token"'
                )
            self.left[token] -= 1
        return self.then(handler)


def test_a_token_that_ages_in_the_middle_of_a_pull_is_renewed(fake: Fake) -> None:
    """P.1: token auth."""
    fake.respond = Tokens(3, breaking_every(500_000))
    pull(fake)
    asked = fake.paths("/token")
    assert len(asked) >= 3
    assert asked[0].form == {"service": ["x"], "scope": ["repository:some/image:pull"]}


def test_a_registry_that_takes_no_token_is_not_asked_forever(fake: Fake) -> None:
    fake.respond = Tokens(0)
    with pytest.raises(SourceError, match="wants a login"):
        pull(fake)
    assert len(fake.requests) < 8


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b"[" * 100_000]
)
def test_a_token_server_that_gives_no_token_is_an_error(fake: Fake, answer: bytes) -> None:
    def respond(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.send(200, answer)
            return True
        return handler.challenge(f'Bearer realm="http://{fake.address}/token"')

    fake.respond = respond
    with pytest.raises(SourceError, match="gives no token"):
        pull(fake)


def test_a_token_server_that_answers_without_end_is_cut_off(fake: Fake) -> None:
    def respond(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.send(200, bytes(3 << 20))
            return True
        return handler.challenge(f'Bearer realm="http://{fake.address}/token"')

    fake.respond = respond
    with pytest.raises(Error, match="more than 1048576 bytes"):
        pull(fake)


@pytest.mark.parametrize(
    "realm", ["", "basic-realm", "ftp://127.0.0.1/token", "file:///etc/passwd", "http://", "http://["]
)
def test_a_realm_that_is_no_web_address_gets_no_credentials(fake: Fake, tmp_path: Path, realm: str) -> None:
    fake.respond = lambda handler: handler.challenge(f'Bearer realm="{realm}"')
    options = SourceOptions(
        tls_verify=False, authfile=authfile(tmp_path / "a.json", {fake.address: basic("ann", "word")})
    )
    with pytest.raises(Error):
        pull(fake, options)
    assert all(request.authorization is None for request in fake.requests)


def once(answer: Respond, path: str, times: int = 1) -> Respond:
    count = 0

    def respond(handler: Handler) -> bool:
        nonlocal count
        if path in handler.path and count < times:
            count += 1
            return answer(handler)
        return False

    return respond


def status(code: int, **headers: str) -> Respond:
    def respond(handler: Handler) -> bool:
        handler.send(code, b"{}", {key.replace("_", "-"): value for key, value in headers.items()})
        return True

    return respond


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


def serving(edit: object, part: str) -> Respond:
    def respond(handler: Handler) -> bool:
        assert handler.fake.layout
        name = handler.path.rpartition("/")[2]
        path = handler.fake.layout.blob_path(name if ":" in name else handler.fake.layout.manifests[0]["digest"])
        if part not in handler.path or not path.exists():
            return False
        assert callable(edit)
        handler.send(200, edit(path.read_bytes()), {"Content-Type": handler.fake.layout.manifests[0]["mediaType"]})
        return True

    return respond


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


def test_credentials_do_not_follow_a_redirect_to_another_host(fake: Fake, layout: Layout, tmp_path: Path) -> None:
    with Fake(layout).serving() as storage:

        def respond(handler: Handler) -> bool:
            if handler.headers.get("Authorization") != f"Basic {basic('ann', 'word')['auth']}":
                return handler.challenge('Basic realm="x"')
            if "/blobs/" in handler.path:
                handler.send(307, b"", {"Location": f"http://{storage.address}{handler.path}?signature=1"})
                return True
            return False

        fake.respond = respond
        options = SourceOptions(
            tls_verify=False, authfile=authfile(tmp_path / "a.json", {fake.address: basic("ann", "word")})
        )

        def strip_query(handler: Handler) -> bool:
            handler.path = handler.path.partition("?")[0]
            return False

        storage.respond = strip_query
        pull(fake, options)
        assert len(storage.requests) == 3
        assert all(request.authorization is None for request in storage.requests)
        # The same server under another name is another host, too.
        assert any(request.authorization for request in fake.requests)


def test_a_redirect_without_end_is_left(fake: Fake) -> None:
    fake.respond = once(lambda handler: status(302, Location=handler.path)(handler), "/manifests/", 100)
    with pytest.raises(SourceError, match="redirects without end"):
        pull(fake)


def test_a_redirect_to_a_file_is_not_followed(fake: Fake) -> None:
    fake.respond = once(status(302, Location="file:///etc/passwd"), "/manifests/")
    with pytest.raises(SourceError, match="leads to 'file:///etc/passwd'"):
        pull(fake)


def test_all_of_oras_goes_through_our_do_request(fake: Fake) -> None:
    """When this fails, oras has found another way out, past the checks of `RegistryClient`."""
    reference = Reference.parse(f"docker://{fake.address}/some/image:v")
    with open_source(reference, INSECURE) as source:
        oras_client = source._client  # type: ignore[attr-defined]
        seen: list[str] = []
        inner = oras_client.do_request

        def counted(url: str, *args: Any, **options: Any) -> Any:
            seen.append(url)
            return inner(url, *args, **options)

        oras_client.do_request = counted
        container = oras_client.container
        container.tag = "v"
        assert oras_client.get_manifest(container)["schemaVersion"] == 2
        blob = fake.layout.manifests[0]["digest"] if fake.layout else ""
        data = oras_client.get_blob(container, blob).content
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob
    assert len(seen) == 2
    assert len(fake.requests) == len(seen)


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
