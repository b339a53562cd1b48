"""What the tests of sources share; no test sees the credentials of who runs it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oci.layouts import Layout, simple_layout
from tests.oci.registries import Fake, docker_registry


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """An image of two layers, the first of 3 MB that do not compress."""
    content = b"".join(bytes([n % 251]) * 7 + n.to_bytes(4, "big") * 3 for n in range(150_000))
    return simple_layout(tmp_path_factory.mktemp("image") / "layout", {"usr/share/data": content}, "none")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry") / "storage"


@pytest.fixture(scope="module")
def registry(storage: Path) -> Iterator[str]:
    """The address of an open docker-registry; others may run over the same storage."""
    with docker_registry(storage) as address:
        yield address


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def fake(layout: Layout) -> Iterator[Fake]:
    with Fake(layout).serving() as running:
        yield running
