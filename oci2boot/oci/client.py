"""HTTP to one registry, on oras. OCI distribution-spec 1.1; distribution, "Token Authentication Specification".

oras gives the session and the URLs. How a request is sent, followed, repeated and authorised is here, in
`do_request`, through which all of oras goes: there, a registry could have the credentials of another host, an
expired token would end the pull, and nothing had a time limit.
"""

import json as json_
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import requests
from oras.container import Container
from oras.provider import Registry

from oci2boot.errors import SourceError, UntrustedError
from oci2boot.oci.auth import Credentials, find_credentials
from oci2boot.oci.reference import DOCKER_HUB, RegistryReference
from oci2boot.system.files import read_all

CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 60.0
ATTEMPTS: Final = 5
CONNECT_ATTEMPTS: Final = 2
LONGEST_PAUSE: Final = 60.0
"""In seconds, whatever Retry-After asks for."""
MAX_REDIRECTS: Final = 10
MAX_TOKEN: Final = 1 << 20
"""Bytes of a token server's answer."""
CLIENT_ID: Final = "oci2boot"
OFFICIAL: Final = "library/"
"""Docker Hub's own repositories: those of a name that is one word."""

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_TEMPORARY: Final = (429, 500, 502, 503, 504)
_CHALLENGE: Final = re.compile(
    r'(?P<key>[A-Za-z0-9_-]+)\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s,"]+))|(?P<scheme>[A-Za-z]+)'
)
_TOKEN: Final = re.compile(r"[!-~]+")


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """Return the parameters of each scheme that a WWW-Authenticate header offers. RFC 9110, section 11.6.1."""
    challenges: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for match in _CHALLENGE.finditer(header):
        if match["scheme"]:
            parameters = challenges.setdefault(match["scheme"].lower(), {})
        else:
            parameters[match["key"].lower()] = match["quoted"] or match["bare"] or ""
    return challenges


def _origin(url: str) -> tuple[str, str]:
    """Return scheme and host of an address that a registry may have given us."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if not parts.netloc:
        raise SourceError(f"the registry leads to {url[:200]!r}, which is no address")
    return parts.scheme, parts.netloc.lower()


def _join(url: str, target: str) -> str:
    try:
        return urljoin(url, target)
    except ValueError:
        return ""


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    # requests would look into ~/.netrc and replace the Authorization header: psf/requests#3929.
    return request


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Leave redirects to `do_request`: requests reads all of their bodies into memory."""


class RegistryClient(Registry):  # type: ignore[misc]
    """Requests for one repository; several threads may use it."""

    def __init__(self, reference: RegistryReference, *, tls_verify: bool, authfile: Path | None) -> None:
        host = f"registry-1.{DOCKER_HUB}" if reference.registry == DOCKER_HUB else reference.registry
        super().__init__(hostname=host, tls_verify=tls_verify)
        self.session = _Session()
        # oras takes a first component without a dot for a namespace, `localhost` too.
        self.container = Container(f"registry.invalid/{reference.repository}")
        self.container.registry = host
        self._reference = reference
        self._insecure = not tls_verify
        self._authfile = authfile
        self._authorization: str | None = None
        self._credentials: Credentials | None = None
        self._lock = Lock()
        if self._insecure:
            self.prefix = self._find_scheme()

    def _find_scheme(self) -> str:
        """Return what a registry without a trusted certificate speaks; as podman does it, HTTPS is tried first."""
        try:
            self._send_once("GET", f"https://{self.hostname}/v2/", {}, None).close()
        except requests.RequestException:
            return "http"
        return "https"

    def manifest_url(self, name: str) -> str:
        return f"{self.prefix}://{self.container.manifest_url(name)}"

    def blob_url(self, digest: str) -> str:
        return f"{self.prefix}://{self.container.get_blob_url(digest)}"

    def referrers_url(self, digest: str) -> str:
        return f"{self.prefix}://{self.hostname}/v2/{self._reference.repository}/referrers/{digest}"

    def do_request(  # the signature is oras's
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        stream: bool = True,  # noqa: ARG002, FBT001, FBT002 oras asks for it; here every body is streamed
    ) -> requests.Response:
        """Send a request, logged in where the registry asks for it; the response's body is not read yet.

        Raises `SourceError` where there is no answer; what its status means is the caller's.
        """
        if json is not None:
            data = json_.dumps(json)
        authorization = self._authorization
        response = self._follow(method, url, headers or {}, data, authorization)
        if response.status_code == 401 and _origin(response.url) == _origin(url):
            response.close()
            self._log_in(response.headers.get("WWW-Authenticate", ""), authorization)
            response = self._follow(method, url, headers or {}, data, self._authorization)
        return response

    def upload(self, url: str, body: Any, headers: Mapping[str, str]) -> requests.Response:
        """Send a body that cannot be sent twice, with the authorization at hand."""
        own = {}
        if self._authorization and _origin(url) == _origin(f"{self.prefix}://{self.hostname}"):
            own["Authorization"] = self._authorization
        return self._send_once("PUT", url, {**headers, **own}, body)

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], data: Any, authorization: str | None
    ) -> requests.Response:
        """Follow redirects; the authorization goes to no other origin than the first one."""
        origin = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            own = {"Authorization": authorization} if authorization and _origin(url) == origin else {}
            response = self._send(method, url, {**headers, **own}, data)
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not target or method != "GET":
                return response
            response.close()
            url = _join(url, target)
        raise SourceError(f"{self._reference.registry} redirects without end")

    def _send(self, method: str, url: str, headers: Mapping[str, str], data: Any) -> requests.Response:
        """Send one request, again where the trouble may pass."""
        attempt = 0
        while True:
            attempt += 1
            pause = 0.5 * 2**attempt
            try:
                response = self._send_once(method, url, headers, data)
            except (requests.ConnectionError, requests.Timeout) as error:
                if attempt >= CONNECT_ATTEMPTS or isinstance(error, requests.exceptions.SSLError):
                    raise self._no_answer(url, error) from error
            except requests.RequestException as error:
                raise self._no_answer(url, error) from error
            else:
                if response.status_code not in _TEMPORARY or attempt == ATTEMPTS or method != "GET":
                    return response
                response.close()
                asked = response.headers.get("Retry-After", "")
                pause = float(asked) if re.fullmatch(r"[0-9]{1,9}", asked) else pause
            time.sleep(min(pause, LONGEST_PAUSE))

    def _send_once(self, method: str, url: str, headers: Mapping[str, str], data: Any) -> requests.Response:
        scheme, host = _origin(url)
        if scheme != "https" and not (scheme == "http" and self._insecure):
            raise UntrustedError(f"{self._reference.registry} leads to {scheme}://{host}, which is not encrypted")
        return self.session.request(
            method,
            url,
            data=data,
            # An encoded body would not have the digest of the blob.
            headers={"Accept-Encoding": "identity", "User-Agent": CLIENT_ID, **headers},
            stream=True,
            verify=self._tls_verify,
            timeout=(CONNECT_SECONDS, SILENCE_SECONDS),
            auth=_no_netrc,
        )

    def _no_answer(self, url: str, error: requests.RequestException) -> SourceError:
        _, host = _origin(url)
        if isinstance(error, requests.exceptions.SSLError):
            return UntrustedError(
                f"{host} cannot prove who it is: {_reason(error)}", hint="REQUESTS_CA_BUNDLE names another CA"
            )
        return SourceError(
            f"{host} does not answer: {_reason(error)}",
            hint=self._no_registry_named or "is the name right, and the network up?",
        )

    @property
    def _no_registry_named(self) -> str | None:
        """What a name like `demo:latest` may have been meant for."""
        if self._reference.registry != DOCKER_HUB or not self._reference.repository.startswith(OFFICIAL):
            return None
        name = str(self._reference).partition(OFFICIAL)[2]
        return (
            f"a name without a registry is one of Docker Hub. ./{name.partition(':')[0]} is a path, "
            f"localhost:5000/{name} is in a registry of this machine"
        )

    def _log_in(self, challenge: str, stale: str | None) -> None:
        """Get an authorization by what the registry's answer asks for, unless another thread has just done so."""
        with self._lock:
            if self._authorization != stale:
                return
            offered = parse_challenges(challenge)
            if self._credentials is None:
                self._credentials = find_credentials(
                    self._reference.registry, self._reference.repository, self._authfile
                )
            if "bearer" in offered:
                self._authorization = f"Bearer {self._token(offered['bearer'], self._credentials)}"
            elif "basic" in offered and self._credentials and not self._credentials.is_identity_token:
                self._authorization = self._credentials.basic

    def _token(self, challenge: Mapping[str, str], credentials: Credentials | None) -> str:
        realm = challenge.get("realm", "")
        scope = challenge.get("scope") or f"repository:{self._reference.repository}:pull"
        query = {"scope": scope, **({"service": challenge["service"]} if "service" in challenge else {})}
        if credentials and credentials.is_identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "client_id": CLIENT_ID,
                "refresh_token": credentials.secret,
            }
            response = self._follow("POST", realm, {}, form, None)
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
            response = self._follow("GET", url, {}, None, credentials.basic if credentials else None)
        if response.status_code != 200:
            response.close()
            raise self.refusal(response.status_code)
        with response:
            answer = read_capped(response, MAX_TOKEN, "the token server's answer")
        try:
            document = json_.loads(answer)
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise SourceError(f"the token server of {self._reference.registry} gives no token")
        return token

    def refusal(self, status: int) -> SourceError:
        """Say what an answer other than the one wanted means."""
        registry, reference = self._reference.registry, self._reference
        match status:
            case 401 | 403 if self._credentials:
                return SourceError(
                    f"{registry} refuses the credentials for {reference}", hint=f"podman login {registry}"
                )
            case 401 | 403:
                return SourceError(
                    f"{registry} wants a login for {reference}, or has no such image",
                    hint=self._no_registry_named or f"podman login {registry}",
                )
            case 404:
                return SourceError(
                    f"{registry} has no {reference}",
                    hint=self._no_registry_named
                    or f"skopeo list-tags docker://{registry}/{reference.repository} lists what it has",
                )
            case 429:
                return SourceError(f"{registry} limits how often one may pull", hint="wait, or log in")
        return SourceError(f"{registry} answers with status {status} for {reference}")


def _reason(error: BaseException) -> str:
    """Return what the innermost error says: requests and urllib3 wrap one into the other, three deep."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def read_capped(response: requests.Response, limit: int, what: str) -> bytes:
    """Read a small body that is not encoded; one over `limit` bytes is a `LimitError`."""
    import urllib3

    try:
        return read_all(_Body(response), limit, what)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise SourceError(f"the connection broke within {what}") from error


@dataclass(frozen=True, slots=True)
class _Body:
    """What a registry answers, as it is sent."""

    response: requests.Response

    def read(self, size: int, /) -> bytes:
        data: bytes = self.response.raw.read(min(size, 1 << 16), decode_content=False)
        return data
