"""What the tests of boot directories share."""

from pathlib import Path

import pytest


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    path = tmp_path / "esp"
    path.mkdir()
    return path
