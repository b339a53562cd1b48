"""Images on their way out: to docker-registry with its ways of logging in, to one that fails, and onto disks."""

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError, Error, SourceError, TargetError
from oci2boot.oci.destination import open_destination
from oci2boot.oci.manifest import Descriptor
from oci2boot.oci.outgoing import ImageDestination
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from tests.oci.layouts import CONFIG, LAYER, MANIFEST
from tests.oci.layouts import tar as make_tar
from tests.oci.registries import (
    Fake,
    Handler,
    TokenServer,
    authfile,
    basic,
    docker_registry,
    htpasswd,
    pair_for_loopback,
    skopeo_digest,
)
from tests.witness import program

TAR = make_tar({"etc/motd": b"hello " * 300_000})


def described(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type, OciDigest.of(data), len(data), {})


def json_of(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


LAYER_DESCRIPTOR = described(LAYER, TAR)
CONFIG_DATA = json.dumps(
    {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [str(OciDigest.of(TAR))]}}
).encode()
CONFIG_DESCRIPTOR = described(CONFIG, CONFIG_DATA)
MANIFEST_DATA = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": json_of(CONFIG_DESCRIPTOR),
        "layers": [json_of(LAYER_DESCRIPTOR)],
    }
).encode()
MANIFEST_DESCRIPTOR = described(MANIFEST, MANIFEST_DATA)


def pieces(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: (data[at : at + 70_000] for at in range(0, len(data), 70_000))


def send(destination: ImageDestination) -> list[bool]:
    """Send the image and return which blobs had to be sent."""
    sent = []
    with destination:
        for descriptor, data in ((LAYER_DESCRIPTOR, TAR), (CONFIG_DESCRIPTOR, CONFIG_DATA)):
            sent.append(not destination.has(descriptor))
            if sent[-1]:
                destination.put(descriptor, pieces(data))
        destination.name(MANIFEST_DESCRIPTOR, MANIFEST_DATA)
    return sent


def destination(name: str, auths: Path | None = None) -> ImageDestination:
    return open_destination(Reference.parse(name), SourceOptions(tls_verify=False, authfile=auths))


def test_a_registry_that_wants_tokens_takes_an_image(tmp_path: Path) -> None:
    """P.1: the right to push is asked for when the registry demands it."""
    keys = pair_for_loopback(tmp_path)
    server = Fake(respond=TokenServer(keys, "word"))
    with server.serving():
        config = (
            f"auth:\n  token:\n    realm: http://{server.address}/token\n    service: tests\n    issuer: tests\n"
            f"    rootcertbundle: {keys.path}\n"
        )
        with docker_registry(tmp_path / "storage", config) as address:
            auths = authfile(tmp_path / "a.json", {address: basic("ann", "word")})
            name = f"docker://{address}/some/image:v"
            assert send(destination(name, auths)) == [True, True]
            assert send(destination(name, auths)) == [False, False]
            assert skopeo_digest(name, "--authfile", str(auths)) == str(MANIFEST_DESCRIPTOR.digest)
    assert ["push" in request.path for request in server.requests][:2] == [False, True]


@pytest.mark.parametrize("password", ["word", "wrong"])
def test_a_registry_behind_a_password_takes_an_image_from_who_has_it(password: str, tmp_path: Path) -> None:
    users = htpasswd(tmp_path / "htpasswd", "ann", "word")
    config = f"auth:\n  htpasswd:\n    realm: basic-realm\n    path: {users}\n"
    with docker_registry(tmp_path / "storage", config) as address:
        auths = authfile(tmp_path / "a.json", {address: basic("ann", password)})
        made = destination(f"docker://{address}/some/image:v", auths)
        if password == "word":
            send(made)
            return
        with pytest.raises(SourceError) as caught:
            send(made)
    assert caught.value.hint == f"podman login {address}"
    assert "wrong" not in caught.value.message


class Taker:
    """A registry that takes uploads at `place`, after it has failed a number of times with each status."""

    def __init__(self, failures: list[int], place: str = "/upload", stored: str = "") -> None:
        self.failures = failures
        self.place = place
        self.headers = {"Docker-Content-Digest": stored} if stored else {}
        self.bodies: list[bytes] = []

    def __call__(self, handler: Handler) -> bool:
        match handler.command:
            case "HEAD":
                handler.send(404)
            case "POST":
                handler.send(202, b"", {"Location": self.place})
            case "PUT" if self.failures:
                handler.send(self.failures.pop())
            case "PUT":
                self.bodies.append(handler.body)
                handler.send(201, b"", self.headers)
            case _:
                return False
        return True


def test_an_upload_that_fails_begins_again() -> None:
    taker = Taker([503, 500])
    with Fake(respond=taker).serving() as server:
        with destination(f"docker://{server.address}/some/image:v") as made:
            made.put(LAYER_DESCRIPTOR, pieces(TAR))
        assert taker.bodies == [TAR]
        assert server.requests[-1].path == f"/upload?digest=sha256%3A{LAYER_DESCRIPTOR.digest.hex}"
        assert server.requests[-1].headers["Content-Length"] == str(len(TAR))


@pytest.mark.parametrize("failures", [[400], [403], [500] * 3])
def test_an_upload_that_is_refused_is_one_sentence(failures: list[int]) -> None:
    with (
        Fake(respond=Taker(failures)).serving() as server,
        pytest.raises(SourceError, match="push"),
        destination(f"docker://{server.address}/some/image:v") as made,
    ):
        made.put(LAYER_DESCRIPTOR, pieces(TAR))


def test_a_registry_that_stored_something_else_is_not_believed() -> None:
    """distribution-spec, "Pushing Manifests": Docker-Content-Digest says what is stored."""
    good = str(MANIFEST_DESCRIPTOR.digest)
    for stored in (good, str(LAYER_DESCRIPTOR.digest)):
        with Fake(respond=Taker([], stored=stored)).serving() as server:
            made = destination(f"docker://{server.address}/some/image:v")
            with made, nullcontext() if stored == good else pytest.raises(DigestError, match="stored"):
                made.name(MANIFEST_DESCRIPTOR, MANIFEST_DATA)
            with made, nullcontext() if stored != good else pytest.raises(DigestError, match="stored"):
                made.put(LAYER_DESCRIPTOR, pieces(TAR))


def test_the_password_does_not_go_where_an_upload_is_sent_to(tmp_path: Path) -> None:
    with Fake(respond=Taker([])).serving() as elsewhere:
        taker = Taker([], f"http://{elsewhere.address}/upload?state=1")

        def respond(handler: Handler) -> bool:
            if not handler.headers.get("Authorization") and handler.path != "/v2/":
                return handler.challenge('Basic realm="x"')
            return taker(handler)

        with Fake(respond=respond).serving() as server:
            auths = authfile(tmp_path / "a.json", {server.address: basic("ann", "word")})
            with destination(f"docker://{server.address}/some/image:v", auths) as made:
                made.put(CONFIG_DESCRIPTOR, pieces(CONFIG_DATA))
        assert [request.authorization for request in elsewhere.requests] == [None]
        assert elsewhere.requests[0].path.startswith("/upload?state=1&digest=")


def test_a_blob_that_is_not_what_it_should_be_is_not_sent_on(tmp_path: Path) -> None:
    changed = b"X" + TAR[1:]
    with Fake(respond=Taker([])).serving() as server:
        for name in (f"docker://{server.address}/i:v", f"oci:{tmp_path}/layout:v", f"oci-archive:{tmp_path}/x.tar"):
            with pytest.raises(DigestError), destination(name) as made:
                made.put(LAYER_DESCRIPTOR, pieces(changed))
    assert not list((tmp_path / "layout/blobs/sha256").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]


@pytest.mark.parametrize("name", ["oci:{}/layout:v", "oci-archive:{}/x.tar:v"])
def test_skopeo_and_we_read_what_was_written(name: str, tmp_path: Path) -> None:
    name = name.format(tmp_path)
    send(destination(name))
    assert skopeo_digest(name) == str(MANIFEST_DESCRIPTOR.digest)
    with open_source(Reference.parse(name)) as source:
        image = source.fetch()
        with source.open(image.layers[0]) as blob:
            assert b"".join(iter(lambda: blob.read(1 << 20), b"")) == TAR


def test_an_archive_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        send(destination(f"oci-archive:{tmp_path}/{name}:v"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as archive:
        assert archive.getnames()[0] == "oci-layout"
        assert archive.getnames()[-1] == "index.json"
    subprocess.run([program("tar"), "-tf", tmp_path / "one"], check=True, capture_output=True)


def test_a_directory_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("files")
    with pytest.raises(TargetError, match="neither empty nor an OCI layout"):
        destination(f"oci:{tmp_path}:v")


def test_a_layout_is_made_with_its_first_blob(tmp_path: Path) -> None:
    """B.8: what fails before there is anything to write leaves nothing."""
    destination(f"oci:{tmp_path}/deep/new:v")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"precious")
    for name in ("file", "file/below"):
        with pytest.raises(TargetError, match=r"cannot write oci:.*/file"):
            destination(f"oci:{tmp_path}/{name}:v")


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"schemaVersion":2,"manifests":[{}]}', b'{"schemaVersion":2}'])
def test_a_damaged_index_is_not_written_over(index: bytes, tmp_path: Path) -> None:
    send(destination(f"oci:{tmp_path}/layout:v"))
    (tmp_path / "layout/index.json").write_bytes(index)
    with pytest.raises(Error):
        send(destination(f"oci:{tmp_path}/layout:v"))
    assert (tmp_path / "layout/index.json").read_bytes() == index


@pytest.mark.parametrize("name", ["dir:/tmp/x", "dumpfile:/tmp/x", "docker://localhost/a@sha256:" + "ab" * 32])
def test_what_cannot_take_an_image_says_so(name: str) -> None:
    with pytest.raises(TargetError):
        destination(name)
