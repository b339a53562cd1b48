"""What the tests of installed machines share."""

from pathlib import Path

import pytest

from tests.workflows.machines import Machine, make_machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)
