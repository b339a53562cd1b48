"""Registries for tests: Debian's docker-registry on loopback, and one of our own that misbehaves as it is told."""

import base64
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.keys import Pair, make, openssl
from tests.oci.layouts import Json, Layout
from tests.witness import program


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        urllib.request.urlopen(url, timeout=2, context=context).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def docker_registry(storage: Path, config: str = "", tls: str = "") -> Iterator[str]:
    """Run docker-registry over `storage` and yield its address; `config` and `tls` are parts of its YAML."""
    port = free_port()
    path = storage.with_name(f"{storage.name}-{port}.yml")
    path.write_text(
        f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {storage}\n"
        f"http:\n  addr: 127.0.0.1:{port}\n{tls}{config}"
    )
    log = path.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen([program("docker-registry"), "serve", path], stdout=output, stderr=output)
    try:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v2/"
        deadline = time.monotonic() + 20
        while not _answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def push(source: str, name: str, *options: str) -> None:
    """Copy an image to a registry on loopback, by skopeo, with its bytes as they are."""
    argv = [program("skopeo"), "copy", "--all", "--preserve-digests", "--insecure-policy", "--dest-tls-verify=false"]
    subprocess.run([*argv, *options, source, name], check=True, capture_output=True)


def skopeo_digest(name: str, *options: str) -> str:
    argv = [program("skopeo"), "inspect", "--format", "{{.Digest}}", "--tls-verify=false", *options, name]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def pair_for_loopback(folder: Path) -> Pair:
    """Make a key and a certificate for a server on loopback."""
    return make(folder, "loopback", "-addext", "subjectAltName=IP:127.0.0.1")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign_token(claims: Json, pair: Pair) -> str:
    """Make a token as distribution's "Token Authentication Implementation" has it, signed by openssl."""
    der = openssl("x509", "-in", pair.path, "-outform", "DER")
    header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
    text = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    return f"{text}.{_base64url(openssl('dgst', '-sha256', '-sign', pair.key, data=text.encode()))}"


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    form: Mapping[str, list[str]]

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


Respond = Callable[["Handler"], bool]
"""Looks at a request before the usual answer is given; True when it has answered."""


@dataclass
class Fake:
    """A registry over a layout, or a token server: what it does is in `respond`."""

    layout: Layout | None = None
    respond: Respond = lambda _: False
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def paths(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.path]

    @contextmanager
    def serving(self) -> Iterator["Fake"]:
        handler = type("BoundHandler", (Handler,), {"fake": self})
        server = _Server(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that has seen enough
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: ClassVar[Fake]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.form: dict[str, list[str]] = parse_qs(urlsplit(self.path).query)
        self._answer()

    def do_POST(self) -> None:
        self.form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._answer()

    def do_HEAD(self) -> None:
        self.form = {}
        self._answer()

    def do_PUT(self) -> None:
        self.form = {}
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        self.fake.requests.append(Request(self.path, dict(self.headers), self.form))
        if not self.fake.respond(self):
            self.usual()

    def usual(self) -> None:
        """Answer as a registry does that has the layout's image under every name."""
        kind, _, name = self.path.rpartition("/")
        if self.path == "/v2/":
            return self.send(200, b"{}")
        assert self.fake.layout
        if kind.endswith("/manifests") and ":" not in name:
            name = self.fake.layout.manifests[0]["digest"]
        path = self.fake.layout.blob_path(name)
        if not path.exists():
            return self.send(404, b"{}")
        data = path.read_bytes()
        start = self.headers.get("Range")
        if start:
            at = int(start.removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {at}-{len(data) - 1}/{len(data)}"
            return self.send(206, data[at:], {"Content-Range": span})
        media_type = self.fake.layout.manifests[0]["mediaType"] if kind.endswith("/manifests") else "application/x"
        return self.send(200, data, {"Content-Type": media_type})

    def send(
        self, status: int, data: bytes = b"", headers: Mapping[str, str] | None = None, promised: int | None = None
    ) -> None:
        """Send an answer; one that promises more than it has ends by a broken connection."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if promised is None else promised))
        self.end_headers()
        self.wfile.write(data)
        if promised is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def challenge(self, text: str) -> bool:
        self.send(401, b"{}", {"WWW-Authenticate": text})
        return True


def htpasswd(path: Path, user: str, password: str) -> Path:
    argv = [program("htpasswd"), "-Bbn", user, password]
    path.write_bytes(subprocess.run(argv, check=True, capture_output=True).stdout)
    return path


def authfile(path: Path, auths: Json, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": auths, **more}))
    return path


def basic(user: str, password: str) -> Json:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


class TokenServer:
    """Gives docker-registry's tokens to who has the password, or to anyone."""

    def __init__(self, keys: Pair, password: str | None) -> None:
        self.keys = keys
        self.wanted = basic("ann", password)["auth"] if password else None
        self.lock = threading.Lock()

    def __call__(self, handler: Handler) -> bool:
        given = handler.headers.get("Authorization")
        if handler.command == "POST":
            allowed = handler.form["refresh_token"] == ["identity"] and given is None
        else:
            allowed = self.wanted is None or given == f"Basic {self.wanted}"
        if not allowed:
            return handler.challenge('Basic realm="tokens"')
        kind, name, actions = handler.form["scope"][0].split(":")
        now = int(time.time())
        claims = {
            "iss": "tests",
            "aud": handler.form["service"][0],
            "sub": "ann",
            "exp": now + 60,
            "nbf": now - 5,
            "iat": now,
            "jti": str(now),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        token = sign_token(claims, self.keys)
        key = "access_token" if handler.command == "POST" else "token"
        handler.send(200, json.dumps({key: token}).encode())
        return True
