"""Credentials by containers-auth.json(5) and Docker's "config.json"; the helpers are programs."""

import json
import os
from pathlib import Path

import pytest

from oci2boot.errors import Error
from oci2boot.oci.auth import OF_THE_MACHINE, Credentials, find_credentials
from oci2boot.oci.client import parse_challenges
from tests.oci.registries import authfile, basic


def found(path: Path, name: str = "quay.io/team/app") -> Credentials | None:
    registry, _, repository = name.partition("/")
    return find_credentials(registry, repository, path)


def user(path: Path, name: str) -> str | None:
    credentials = found(path, name)
    return credentials.username if credentials else None


def test_the_most_specific_namespace_wins(tmp_path: Path) -> None:
    names = ("quay.io", "quay.io/team", "quay.io/team/app")
    path = authfile(tmp_path / "a.json", {name: basic(name, "x") for name in names})
    assert user(path, "quay.io/team/app") == "quay.io/team/app"
    assert user(path, "quay.io/team/other") == "quay.io/team"
    assert user(path, "quay.io/team/app2") == "quay.io/team"
    assert user(path, "quay.io/teams/app") == "quay.io"
    assert user(path, "quay.io:5000/team/app") is None
    assert user(path, "evil.quay.io/team/app") is None


@pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/", "index.docker.io"])
def test_docker_hub_is_known_under_its_old_names(tmp_path: Path, key: str) -> None:
    path = authfile(tmp_path / "a.json", {key: basic("ann", "x")})
    assert user(path, "docker.io/library/debian") == "ann"


@pytest.mark.parametrize("key", ["https://reg.example/v1/", "http://reg.example", "https://reg.example"])
def test_keys_that_are_web_addresses_are_known(tmp_path: Path, key: str) -> None:
    assert user(authfile(tmp_path / "a.json", {key: basic("ann", "x")}), "reg.example/x") == "ann"


def test_the_files_are_looked_through_in_their_order(tmp_path: Path) -> None:
    """P.1: containers' auth.json before docker's config."""
    env = {
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "HOME": str(tmp_path / "home"),
    }
    places = ["run/containers/auth.json", "config/containers/auth.json", "docker/config.json"]
    for place in reversed(places):
        authfile(tmp_path / place, {"quay.io": basic(place, "x")})
        credentials = find_credentials("quay.io", "x", env=env)
        assert credentials
        assert credentials.username == place
    own = authfile(tmp_path / "own.json", {})
    assert find_credentials("quay.io", "x", env={**env, "REGISTRY_AUTH_FILE": str(own)}) is None


def test_the_machines_own_file_comes_after_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P.1: ostree's and bootc's; the state of now before the administrator's, and that before the vendor's."""
    assert [str(path) for path in OF_THE_MACHINE] == [
        "/run/ostree/auth.json", "/etc/ostree/auth.json", "/usr/lib/ostree/auth.json",
    ]  # fmt: skip
    places = [tmp_path / path.relative_to("/") for path in OF_THE_MACHINE]
    monkeypatch.setattr("oci2boot.oci.auth.OF_THE_MACHINE", places)
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "user"), "HOME": str(tmp_path / "home")}
    for path in (*reversed(places), tmp_path / "user/containers/auth.json"):
        authfile(path, {"quay.io": basic(str(path), "x")})
        credentials = find_credentials("quay.io", "x", env=env)
        assert credentials
        assert credentials.username == str(path)


def helper(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


ANSWER = """test "$1" = get || exit 1
read -r server
printf '{"ServerURL":"%s","Username":"u-%s","Secret":"s"}' "$server" "$server"
"""


def test_helpers_are_asked_for_their_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P.1: credential helpers."""
    helper(tmp_path / "bin", "mine", ANSWER, monkeypatch)
    path = authfile(tmp_path / "a.json", {"quay.io": {}}, credHelpers={"quay.io": "mine"})
    assert found(path) == Credentials("u-quay.io", "s")
    assert found(path, "other.io/x") is None
    path = authfile(tmp_path / "b.json", {"quay.io": {}}, credsStore="mine")
    assert found(path, "other.io/x") == Credentials("u-other.io", "s")
    assert found(path, "docker.io/x") == Credentials("u-https://index.docker.io/v1/", "s")


def test_a_helper_may_give_an_identity_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path / "bin", "mine", """printf '{"Username":"<token>","Secret":"t"}'""", monkeypatch)
    path = authfile(tmp_path / "a.json", {}, credsStore="mine")
    assert found(path) == Credentials("<token>", "t", is_identity_token=True)


def test_a_helper_that_has_none_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path / "bin", "mine", "echo credentials not found in native keychain; exit 1", monkeypatch)
    assert found(authfile(tmp_path / "a.json", {}, credsStore="mine")) is None


@pytest.mark.parametrize(
    "script",
    ["exit 1", "echo locked >&2; exit 1", "echo hello", "echo '{}'", "echo '[]'", 'echo \'{"Username":1,"Secret":2}\''],
)
def test_a_helper_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    helper(tmp_path / "bin", "mine", script, monkeypatch)
    with pytest.raises(Error, match="docker-credential-mine"):
        found(authfile(tmp_path / "a.json", {}, credsStore="mine"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"quay.io": "x"}}',
        '{"auths": {"quay.io": {"auth": 5}}}',
        '{"auths": {"quay.io": {"auth": "c2VjcmV0!"}}}',
        '{"auths": {"quay.io": {"auth": "c2VjcmV0"}}}',
        '{"credsStore": "../../bin/sh"}',
        '{"credsStore": 1}',
        '{"credHelpers": {"quay.io": "no-such-helper"}}',
    ],
)
def test_a_broken_file_is_an_error_that_keeps_secrets(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(Error) as caught:
        found(path)
    assert "secret" not in f"{caught.value.message} {caught.value.hint} {caught.value.__cause__}"


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"no file of credentials"):
        found(tmp_path / "nowhere.json")


def test_an_empty_file_has_no_credentials(tmp_path: Path) -> None:
    for text in ("", "\n", "{}", '{"auths": {}}', '{"auths": {"quay.io": {}}}', json.dumps({"auths": None})):
        (tmp_path / "a.json").write_text(text)
        assert found(tmp_path / "a.json") is None


def test_secrets_are_not_shown() -> None:
    assert "hush" not in repr(Credentials("ann", "hush"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', {"basic": {"realm": "x"}}),
        (
            'Bearer realm="https://a/token",service="s",scope="repository:x:pull,push"',
            {"bearer": {"realm": "https://a/token", "service": "s", "scope": "repository:x:pull,push"}},
        ),
        ("bearer realm=https://a , service = s", {"bearer": {"realm": "https://a", "service": "s"}}),
        ('Basic realm="b", Bearer realm="https://a"', {"basic": {"realm": "b"}, "bearer": {"realm": "https://a"}}),
        ("Negotiate", {"negotiate": {}}),
        ("", {}),
    ],
)
def test_challenges_are_read_as_rfc_9110_has_them(header: str, expected: dict[str, dict[str, str]]) -> None:
    assert parse_challenges(header) == expected


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(Error):
        found(tmp_path / "a.json")
