"""Who gets a token or a password, and where a redirect may lead."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from oci2boot.errors import Error, SourceError
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from tests.oci.faults import INSECURE, breaking_every, once, pull, status
from tests.oci.layouts import Layout
from tests.oci.registries import Fake, Handler, Respond, authfile, basic

pytestmark = pytest.mark.usefixtures("pauses")


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


@pytest.mark.parametrize("offered", ["Basic", "Bearer"])
def test_another_host_that_asks_for_a_login_gets_none(fake: Fake, layout: Layout, tmp_path: Path, offered: str) -> None:
    """Its challenge would have the credentials of the registry sent to a token server of its choice."""
    with Fake(layout).serving() as storage:

        def elsewhere(handler: Handler) -> bool:
            if "/blobs/" not in handler.path:
                return False
            handler.send(307, b"", {"Location": f"http://{storage.address}{handler.path}"})
            return True

        def ask(handler: Handler) -> bool:
            return handler.challenge(f'{offered} realm="http://{storage.address}/token",service="s"')

        fake.respond, storage.respond = elsewhere, ask
        options = SourceOptions(
            tls_verify=False, authfile=authfile(tmp_path / "a.json", {fake.address: basic("ann", "word")})
        )
        with pytest.raises(SourceError, match="wants a login"):
            pull(fake, options)
        assert {request.path.split("/")[-2] for request in storage.requests} == {"blobs"}
        assert all(request.authorization is None for request in (*storage.requests, *fake.requests))


@pytest.mark.parametrize("status", [307, 308])
def test_a_refresh_token_does_not_follow_a_redirect(fake: Fake, tmp_path: Path, status: int) -> None:
    """It is in the body of the request, which 307 and 308 would have sent again. RFC 9110, section 15.4.8"""
    with Fake().serving() as elsewhere:

        def respond(handler: Handler) -> bool:
            if handler.command == "POST":
                handler.send(status, b"", {"Location": f"http://{elsewhere.address}/token"})
                return True
            return handler.challenge(f'Bearer realm="http://{fake.address}/token",service="s"')

        fake.respond = respond
        entry = {"auth": basic("x", "y")["auth"], "identitytoken": "secret"}
        auths = authfile(tmp_path / "a.json", {fake.address: entry})
        with pytest.raises(SourceError):
            pull(fake, SourceOptions(tls_verify=False, authfile=auths))
        assert [request.form["refresh_token"] for request in fake.paths("/token")] == [["secret"]]
        assert elsewhere.requests == []


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
