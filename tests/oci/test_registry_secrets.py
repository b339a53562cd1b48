"""Whom a registry may lead us to, and who gets no secret there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from oci2boot.errors import SourceError
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from tests.oci.layouts import Layout
from tests.oci.registries import Fake, Handler, authfile, basic


@pytest.fixture
def fake(layout: Layout) -> Iterator[Fake]:
    with Fake(layout).serving() as running:
        yield running


def pull(fake: Fake, auths: Path) -> None:
    options = SourceOptions(tls_verify=False, authfile=auths)
    with open_source(Reference.parse(f"docker://{fake.address}/some/image:v"), options) as source:
        source.fetch()


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
        auths = authfile(tmp_path / "a.json", {fake.address: basic("ann", "word")})
        with pytest.raises(SourceError, match="wants a login"):
            pull(fake, auths)
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
            pull(fake, auths)
        assert [request.form["refresh_token"] for request in fake.paths("/token")] == [["secret"]]
        assert elsewhere.requests == []
