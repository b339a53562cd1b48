"""An intact disk, and the same mounted; whoever changes them changes them back, or takes a copy."""

from pathlib import Path

import pytest

from tests.workflows.disks import Demo, installed, layers
from tests.workflows.verify.looking import physical_root


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return installed(tmp_path_factory.mktemp("demo"), layers())


@pytest.fixture(scope="session")
def root(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return physical_root(demo, tmp_path_factory.mktemp("root"))
