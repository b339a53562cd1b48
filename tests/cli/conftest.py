"""The command line, run in this process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oci2boot.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Run:
    """Give a function that runs the command line: (status, output, what went to standard error)."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("OCI2BOOT_REPO", raising=False)

    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["oci2boot", *map(str, words)])
        status: Any = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        sys.stdout.flush()
        output, errors = capfdbinary.readouterr()
        return int(status or 0), output.decode(), errors.decode()

    return call
