"""What the tests of disks share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.target.disks import (
    working_directory,
)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with working_directory() as path:
        yield path
