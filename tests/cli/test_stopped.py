"""Stopped by Ctrl-C: what is said is true of what was being written."""

import json

import pytest

from oci2boot.system.files import half_written
from tests.cli.conftest import Run


def stop() -> None:
    raise KeyboardInterrupt


def test_a_command_that_is_stopped_says_that_nothing_is_half_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oci2boot.cli.images.list_images", lambda _: stop())
    status, _, errors = run("images", "--repo", "none")
    assert (status, errors) == (130, "error: stopped; nothing is half-written\n")


def test_and_what_is_where_something_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: object) -> None:
        with half_written("/dev/vda"):
            stop()

    monkeypatch.setattr("oci2boot.cli.images.list_images", write)
    status, _, errors = run("images", "--repo", "none")
    assert (status, errors) == (130, "error: stopped; /dev/vda is half-written\n")
    status, output, _ = run("images", "--repo", "none", "--json")
    assert (status, json.loads(output)["error"]) == (130, "stopped; /dev/vda is half-written")


def test_a_command_that_ends_by_itself_is_not_stopped(run: Run) -> None:
    status, _, errors = run("no-such-command")
    assert status == 2
    assert "stopped" not in errors
