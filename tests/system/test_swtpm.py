"""A TPM of swtpm's, for as long as it is wanted."""

import os
from pathlib import Path

import pytest

from oci2boot.errors import ToolError
from oci2boot.system.swtpm import has_swtpm, software_tpm


def running(folder: Path) -> list[int]:
    """Return the processes that have the folder on their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words:
            found.append(int(path.parent.name))
    return found


def test_it_listens_and_is_gone_afterwards(tmp_path: Path) -> None:
    assert has_swtpm(), "scripts/setup test installs it"
    with software_tpm(tmp_path) as socket:
        assert socket.is_socket()
        assert len(running(tmp_path)) == 1
    assert running(tmp_path) == []


def test_why_it_does_not_start_is_said(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(ToolError, match="too long a name"), software_tpm(deep):
        pass
    comma = tmp_path / "a,b"
    comma.mkdir()
    with pytest.raises(ToolError, match="did not start"), software_tpm(comma):
        pass
