from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cuts import Commands, commands
from tests.oci.layouts import Layout
from tests.workflows.sealable import add_image, base


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands(tmp_path_factory.mktemp("commands")) as started:
        yield started


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    add_image(layout, base(), "one")
    add_image(layout, base({"usr/bin/new": b"new" * 9000, "usr/bin/small": b"small"}), "two")
    return layout.path
