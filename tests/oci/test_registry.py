"""Pulling from docker-registry itself, filled by skopeo: what both say of an image is the same."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oci2boot.digest import OciDigest
from oci2boot.errors import SourceError, UntrustedError
from oci2boot.oci.image import Image, ImageSource
from oci2boot.oci.manifest import Layer, Platform
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.oci.unpack import Uncompressed
from tests.keys import Pair
from tests.oci.layouts import Layout, platform, simple_layout, tar
from tests.oci.registries import (
    Fake,
    TokenServer,
    authfile,
    basic,
    docker_registry,
    htpasswd,
    pair_for_loopback,
    push,
    skopeo_digest,
)
from tests.witness import VECTORS, program

INSECURE = SourceOptions(tls_verify=False)


def unpack(source: ImageSource, layer: Layer) -> bytes:
    with Uncompressed(source.open(layer), layer) as plain:
        return b"".join(iter(plain.read, b""))


def pull(name: str, options: SourceOptions = INSECURE) -> tuple[Image, list[bytes]]:
    with open_source(Reference.parse(name), options) as source:
        image = source.fetch()
        with ThreadPoolExecutor(2) as pool:
            return image, list(pool.map(lambda layer: unpack(source, layer), image.layers))


@pytest.fixture(scope="module")
def pushed(registry: str, layout: Layout) -> str:
    name = f"docker://{registry}/some/image:v"
    push(f"oci:{layout.path}:v", name)
    return name


def test_an_image_of_a_registry_is_the_one_that_was_pushed(pushed: str, layout: Layout) -> None:
    """P.1, layers in parallel; P.2."""
    image, tars = pull(pushed)
    assert str(image.manifest_digest) == skopeo_digest(pushed) == layout.manifests[0]["digest"]
    raw = subprocess.run(
        [program("skopeo"), "inspect", "--raw", "--tls-verify=false", pushed], check=True, capture_output=True
    )
    assert image.manifest == raw.stdout
    diff_ids = json.loads(image.config)["rootfs"]["diff_ids"]
    assert [str(OciDigest.of(data)) for data in tars] == diff_ids


@pytest.mark.parametrize("case", sorted(json.loads((VECTORS / "oci.json").read_text())))
def test_every_vector_comes_back_from_its_layout(case: str) -> None:
    expected = json.loads((VECTORS / "oci.json").read_text())[case]
    image, _ = pull(f"oci:{VECTORS / expected['layout']}:v")
    assert str(image.manifest_digest) == expected["manifest"]
    assert str(image.config_digest) == expected["config"]


@pytest.mark.parametrize(
    ("compression", "form"),
    # Schema 2 has no zstd.
    [("gzip", "oci"), ("zstd", "oci"), ("none", "oci"), ("gzip", "v2s2"), ("none", "v2s2")],
)
def test_each_format_and_compression_is_pulled(registry: str, tmp_path: Path, compression: str, form: str) -> None:
    """P.1: Docker schema 2 and OCI media types; gzip, zstd, plain."""
    layout = simple_layout(tmp_path / "l", compression=compression)
    name = f"docker://{registry}/{compression}:{form}"
    argv = [program("skopeo"), "copy", "--insecure-policy", "--dest-tls-verify=false", "--format", form]
    subprocess.run([*argv, f"oci:{layout.path}:v", name], check=True, capture_output=True)
    image, tars = pull(name)
    assert str(image.manifest_digest) == skopeo_digest(name)
    assert tars[1] == tar({"etc/issue": b"Debian\n" * 100})


def test_an_image_is_had_by_digest_and_by_tag_with_digest(pushed: str) -> None:
    digest = skopeo_digest(pushed)
    repository = pushed.removesuffix(":v")
    for name in (f"{repository}@{digest}", f"{pushed}@{digest}"):
        image, _ = pull(name)
        assert str(image.manifest_digest) == digest


def test_of_an_index_the_platform_asked_for_is_pulled(registry: str, tmp_path: Path) -> None:
    """P.1: image index and --platform; agreed with skopeo's --override-arch."""
    layout = Layout(tmp_path / "l")
    entries = []
    for name in ("amd64", "arm64", "riscv64"):
        image = layout.image([layout.layer(tar({name: name.encode() * 100}))], architecture=name)
        entries.append({**image, **platform(name)})
    layout.tag(layout.index(entries))
    where = f"docker://{registry}/index:v"
    push(f"oci:{layout.path}:v", where)
    for name, entry in zip(("amd64", "arm64", "riscv64"), entries, strict=True):
        options = SourceOptions(platform=Platform("linux", name), tls_verify=False)
        image_found, tars = pull(where, options)
        assert str(image_found.manifest_digest) == entry["digest"]
        assert name.encode() * 100 in tars[0]
        argv = [program("skopeo"), "--override-arch", name, "inspect", "--tls-verify=false", where]
        seen = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
        assert seen["Layers"] == [str(layer.digest) for layer in image_found.layers]
    with pytest.raises(SourceError) as caught:
        pull(where, SourceOptions(platform=Platform("linux", "s390x"), tls_verify=False))
    assert "linux/amd64, linux/arm64, linux/riscv64" in (caught.value.hint or "")


@pytest.mark.usefixtures("pushed")
@pytest.mark.parametrize("name", ["some/image:no", "nobody/nothing:v", f"some/image@sha256:{'0' * 64}"])
def test_what_is_not_there_is_said_so(registry: str, name: str) -> None:
    with pytest.raises(SourceError, match=f"{registry} has no docker://{registry}/"):
        pull(f"docker://{registry}/{name}")


def test_plain_http_needs_leave(pushed: str) -> None:
    """As podman has it: also on loopback."""
    with pytest.raises(UntrustedError):
        pull(pushed, SourceOptions())


def test_a_host_that_does_not_answer_is_said_so() -> None:
    with pytest.raises(SourceError, match="does not answer: Connection refused"):
        pull("docker://127.0.0.1:1/x:v")
    with pytest.raises(SourceError, match=r"nowhere\.invalid does not answer"):
        pull("docker://nowhere.invalid/x:v")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_for_loopback(tmp_path_factory.mktemp("keys"))


@pytest.mark.usefixtures("pushed")
def test_a_certificate_is_checked_unless_told_otherwise(
    storage: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P.1: TLS options."""
    with docker_registry(storage, tls=f"  tls:\n    certificate: {keys.path}\n    key: {keys.key}\n") as address:
        name = f"docker://{address}/some/image:v"
        with pytest.raises(UntrustedError, match="cannot prove who it is"):
            pull(name, SourceOptions())
        assert len(pull(name)[1]) == 2
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(keys.path))
        assert len(pull(name, SourceOptions())[1]) == 2


@pytest.fixture(scope="module")
def closed(
    storage: Path,
    pushed: str,  # noqa: ARG001 it fills the storage
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The same registry behind a password."""
    path = htpasswd(tmp_path_factory.mktemp("htpasswd") / "htpasswd", "ann", "päss:word")
    with docker_registry(storage, f"auth:\n  htpasswd:\n    realm: basic-realm\n    path: {path}\n") as address:
        yield address


@pytest.mark.parametrize(
    "place", ["authfile", "REGISTRY_AUTH_FILE", "run/containers/auth.json", "home/.docker/config.json"]
)
def test_a_password_is_found_where_people_keep_it(
    closed: str, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P.1: basic auth, auth files."""
    by_hand = place in ("authfile", "REGISTRY_AUTH_FILE")
    path = authfile(tmp_path / ("some.json" if by_hand else place), {closed: basic("ann", "päss:word")})
    if place == "REGISTRY_AUTH_FILE":
        monkeypatch.setenv(place, str(path))
    options = SourceOptions(tls_verify=False, authfile=path if place == "authfile" else None)
    assert len(pull(f"docker://{closed}/some/image:v", options)[1]) == 2


@pytest.mark.parametrize("auth", [None, basic("ann", "wrong")])
def test_without_the_right_password_a_login_is_asked_for(closed: str, tmp_path: Path, auth: dict[str, str]) -> None:
    options = SourceOptions(tls_verify=False, authfile=authfile(tmp_path / "a.json", {closed: auth} if auth else {}))
    with pytest.raises(SourceError) as caught:
        pull(f"docker://{closed}/some/image:v", options)
    assert caught.value.hint == f"podman login {closed}"
    assert "wrong" not in caught.value.message


def test_netrc_has_no_say(closed: str, tmp_path: Path, home: Path) -> None:
    """requests would put the password of ~/.netrc over ours."""
    home.mkdir()
    (home / ".netrc").write_text("machine 127.0.0.1 login ann password wrong\n")
    options = SourceOptions(
        tls_verify=False, authfile=authfile(tmp_path / "a.json", {closed: basic("ann", "päss:word")})
    )
    assert len(pull(f"docker://{closed}/some/image:v", options)[1]) == 2


@pytest.mark.usefixtures("pushed")
@pytest.mark.parametrize("login", ["anonymous", "password", "identitytoken"])
def test_tokens_of_a_real_token_server_open_a_real_registry(
    storage: Path, keys: Pair, tmp_path: Path, login: str
) -> None:
    """P.1: token auth, with and without a password, and by OAuth2's refresh token."""
    server = Fake(respond=TokenServer(keys, None if login == "anonymous" else "word"))
    with server.serving():
        config = (
            f"auth:\n  token:\n    realm: http://{server.address}/token\n    service: tests\n    issuer: tests\n"
            f"    rootcertbundle: {keys.path}\n"
        )
        with docker_registry(storage, config) as address:
            auths = {
                "anonymous": {},
                "password": {address: basic("ann", "word")},
                "identitytoken": {address: {"auth": basic("x", "y")["auth"], "identitytoken": "identity"}},
            }[login]
            options = SourceOptions(tls_verify=False, authfile=authfile(tmp_path / "a.json", auths))
            assert len(pull(f"docker://{address}/some/image:v", options)[1]) == 2
            # One token serves all requests of all threads.
            assert len(server.requests) == 1
            if login == "password":
                with pytest.raises(SourceError, match="wants a login"):
                    pull(f"docker://{address}/some/image:v")


@pytest.mark.usefixtures("pushed")
def test_a_trusted_registry_cannot_send_the_password_over_plain_http(
    storage: Path, keys: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(keys.path))
    server = Fake(respond=TokenServer(keys, "word"))
    with server.serving():
        config = (
            f"auth:\n  token:\n    realm: http://{server.address}/token\n    service: tests\n    issuer: tests\n"
            f"    rootcertbundle: {keys.path}\n"
        )
        with docker_registry(
            storage, config, f"  tls:\n    certificate: {keys.path}\n    key: {keys.key}\n"
        ) as address:
            auths = authfile(tmp_path / "a.json", {address: basic("ann", "word")})
            with pytest.raises(SourceError, match="which is not encrypted"):
                pull(f"docker://{address}/some/image:v", SourceOptions(authfile=auths))
            assert server.requests == []
            pull(f"docker://{address}/some/image:v", SourceOptions(tls_verify=False, authfile=auths))


def test_an_image_that_umoci_made_is_pulled(registry: str, tmp_path: Path) -> None:
    """A layout whose documents another tool has written."""
    bundle = tmp_path / "layout"
    umoci = program("umoci")
    subprocess.run([umoci, "init", "--layout", bundle], check=True)
    subprocess.run([umoci, "new", "--image", f"{bundle}:v"], check=True)
    (tmp_path / "motd").write_text("hello " * 100)
    subprocess.run(
        [umoci, "insert", "--image", f"{bundle}:v", "--rootless", tmp_path / "motd", "/etc/motd"], check=True
    )
    name = f"docker://{registry}/umoci:v"
    push(f"oci:{bundle}:v", name)
    image, tars = pull(name)
    assert b"hello hello" in tars[0]
    assert str(image.manifest_digest) == skopeo_digest(name)
