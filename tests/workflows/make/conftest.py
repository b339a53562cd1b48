"""What the tests that make UKIs and images share."""

from pathlib import Path

import pytest

from oci2boot.oci.reference import Reference
from oci2boot.workflows.make.seal import SealedImage
from oci2boot.workflows.requests import SigningOptions
from tests.boot import debian
from tests.oci.layouts import Layout
from tests.workflows.make.seals import sealed_to
from tests.workflows.sealable import add_image, base
from tests.workflows.verity_images import (
    make_image,
    make_signing,
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A layout with one image, tagged `base`."""
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    add_image(layout, base(), "base")
    return layout


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "repo"


@pytest.fixture(scope="module")
def out(layout: Layout, sealed: SealedImage) -> Path:  # noqa: ARG001 it writes the layout
    """The layout with the sealed image, under the tag `sealed`."""
    return layout.path.with_name("out")


@pytest.fixture(scope="module")
def sealed(layout: Layout, repo: Path) -> SealedImage:
    return sealed_to(repo, f"oci:{layout.path}:base", f"oci:{layout.path.with_name('out')}:sealed")


@pytest.fixture
def erofs_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Debian 13's mkfs.erofs first on PATH."""
    monkeypatch.setenv("PATH", str(debian.erofs_utils("mkfs.erofs").parent), prepend=":")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> SigningOptions:
    return make_signing(tmp_path_factory.mktemp("keys"))
