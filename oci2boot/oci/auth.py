"""Credentials for registries, where people keep them: containers-auth.json(5), Docker's config.json, and bootc's."""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from oci2boot.errors import FormatError, SourceError, ToolError
from oci2boot.oci.documents import parse_object
from oci2boot.oci.reference import DOCKER_HUB
from oci2boot.system.files import read_all
from oci2boot.system.run import run

MAX_AUTH_FILE: Final = 1 << 20
HELPER_SECONDS: Final = 60.0
OF_THE_MACHINE: Final = tuple(Path(folder, "ostree/auth.json") for folder in ("/run", "/etc", "/usr/lib"))
"""ostree's and bootc's, in their order."""
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io")
_TOKEN_USER: Final = "<token>"  # noqa: S105  # a name, no secret
"""A helper's user name for an identity token; docker-credential-helpers, "Development"."""


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str
    secret: str = field(repr=False)
    is_identity_token: bool = False
    """Whether the secret is an OAuth2 refresh token rather than a password."""

    @property
    def basic(self) -> str:
        """The value of an Authorization header. RFC 7617."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()


def find_credentials(
    registry: str, repository: str, authfile: Path | None = None, env: Mapping[str, str] = os.environ
) -> Credentials | None:
    """Return what the first file that knows the registry has for it, the most specific namespace first."""
    for path, required in _auth_files(authfile, env):
        config = _read_config(path, required=required)
        if config is None:
            continue
        credentials = _from_config(config, registry, repository, path)
        if credentials:
            return credentials
    return None


def _auth_files(authfile: Path | None, env: Mapping[str, str]) -> Iterator[tuple[Path, bool]]:
    """Yield the files in their order, and whether each must exist."""
    if authfile or env.get("REGISTRY_AUTH_FILE"):
        yield authfile or Path(env["REGISTRY_AUTH_FILE"]), True
        return
    home = Path(env.get("HOME") or Path.home())
    runtime = env.get("XDG_RUNTIME_DIR")
    yield (Path(runtime) / "containers" if runtime else Path(f"/run/containers/{os.getuid()}")) / "auth.json", False
    yield Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json", False
    yield Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json", False
    # The machine's own, for updates that no user asks for; to others they are not readable, and no business of theirs.
    yield from ((path, False) for path in OF_THE_MACHINE if os.access(path, os.R_OK))


def _read_config(path: Path, *, required: bool) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            data = read_all(file, MAX_AUTH_FILE, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if required:
            raise SourceError(f"there is no file of credentials {path}") from error
        return None
    except OSError as error:
        raise SourceError(f"the credentials in {path} cannot be read: {error.strerror}") from error
    return parse_object(data, str(path)) if data.strip() else None


def _from_config(config: Mapping[str, Any], registry: str, repository: str, path: Path) -> Credentials | None:
    auths, helpers = ({} if config.get(key) is None else config[key] for key in ("auths", "credHelpers"))
    if not isinstance(auths, dict) or not isinstance(helpers, dict):
        raise FormatError(f"{path} has no proper auths or credHelpers")
    helper = helpers.get(registry)
    if helper:
        return _ask_helper(helper, registry, path)
    for key in _keys(registry, repository, auths):
        credentials = _from_entry(auths[key], f"the credentials for {key} in {path}")
        if credentials:
            return credentials
    store = config.get("credsStore")
    return _ask_helper(store, _HUB_KEYS[0] if registry == DOCKER_HUB else registry, path) if store else None


def _keys(registry: str, repository: str, auths: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that are there for a repository: its own, its namespaces', the registry's and older spellings."""
    name = f"{registry}/{repository}"
    while name:
        if name in auths:
            yield name
        name = name.rpartition("/")[0]
    hosts = (registry, *(_HUB_KEYS if registry == DOCKER_HUB else ()))
    for key in auths:
        # Docker wrote keys as URLs: https://registry/v1/.
        if key in hosts[1:] or (key.startswith(("https://", "http://")) and key.split("/")[2] in hosts):
            yield key


def _from_entry(entry: Any, what: str) -> Credentials | None:
    if not isinstance(entry, dict):
        raise FormatError(f"{what} are no object")
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(_TOKEN_USER, token, is_identity_token=True)
    auth = entry.get("auth")
    if not auth:
        return None
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (TypeError, ValueError, binascii.Error):
        # Neither the text nor the cause goes on: both may hold the secret.
        raise FormatError(f"{what} are not in base64") from None
    if not colon:
        raise FormatError(f"{what} have no password")
    return Credentials(username, password.rstrip("\0"))


def _ask_helper(helper: Any, registry: str, path: Path) -> Credentials | None:
    if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
        raise FormatError(f"{path} names an improper credential helper")
    program = f"docker-credential-{helper}"
    try:
        answer = json.loads(run([program, "get"], data=registry.encode(), timeout=HELPER_SECONDS))
        username, secret = answer["Username"], answer["Secret"]
    except ToolError as error:
        # The protocol has this sentence, not an exit status, for "I have none".
        if "credentials not found" in error.message:
            return None
        raise
    except (ValueError, KeyError, TypeError):
        raise SourceError(f"{program} did not answer with credentials") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise SourceError(f"{program} did not answer with credentials")
    return Credentials(username, secret, is_identity_token=username == _TOKEN_USER)
