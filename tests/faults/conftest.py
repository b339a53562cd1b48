from collections.abc import Iterator

import pytest

from tests.faults.cuts import Commands, commands


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands(tmp_path_factory.mktemp("commands")) as started:
        yield started
