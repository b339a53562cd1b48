"""What a machine says of itself: its command line, and the records beside the state of its deployments."""

import json
import re
from pathlib import Path

import pytest

from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, TargetError
from oci2boot.sysroot import machine, nextroot
from oci2boot.sysroot.deployments import read_deployments
from oci2boot.sysroot.machine import Sysroot, booted_digest

A, B = "ab" * 32, "cd" * 32


def booted(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> VerityDigest | None:
    (folder / "cmdline").write_text(line + "\n")
    (folder / "mountinfo").write_text("")
    monkeypatch.setattr(machine, "COMMAND_LINE", folder / "cmdline")
    monkeypatch.setattr(nextroot, "MOUNTS", folder / "mountinfo")
    return booted_digest(Sysroot(folder, None, live=True))


def test_what_is_booted_is_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert booted(f"rw composefs={A} quiet", tmp_path, monkeypatch) == VerityDigest.parse(A)
    assert booted("rw quiet", tmp_path, monkeypatch) is None


@pytest.mark.parametrize("line", [f"composefs={A} composefs={B}", f"composefs={A} composefs.digest=v1-sha256-12:{A}"])
def test_a_command_line_with_two_promises_is_not_believed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C.31: what runs is never collected as garbage, so it has to be known."""
    with pytest.raises(TargetError, match="more than one root file system"):
        booted(line, tmp_path, monkeypatch)


def test_of_several_promises_the_one_that_is_here_was_booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C.31: one root file system by both hashes, of which the store has one."""
    other = "ef" * 64
    objects = tmp_path / "composefs/objects"
    (objects / "ef").mkdir(parents=True)
    (objects / "ef" / other[2:]).write_bytes(b"")
    line = f"composefs={A} composefs={other}"
    assert booted(line, tmp_path, monkeypatch) == VerityDigest.parse(other)
    (objects / "ab").mkdir()
    (objects / "ab" / A[2:]).write_bytes(b"")
    with pytest.raises(TargetError, match="more than one root file system"):
        booted(line, tmp_path, monkeypatch)


def state(folder: Path, name: str, record: bytes) -> Sysroot:
    place = folder / "state/deploy" / name
    place.mkdir(parents=True)
    (place / "oci2boot.json").write_bytes(record)
    return Sysroot(folder, None)


def test_a_record_is_of_the_deployment_that_it_lies_beside(tmp_path: Path) -> None:
    (one,) = read_deployments(state(tmp_path, A, json.dumps({"rootfs": A}).encode()))
    assert (one.digest, one.pinned) == (VerityDigest.parse(A), False)


@pytest.mark.parametrize(
    "record",
    [
        {"rootfs": B},
        {},
        [],
        {"rootfs": A, "deployment": {"pinned": "no"}},
        {"rootfs": A, "deployment": {"deployed": "yesterday"}},
        {"rootfs": A, "deployment": {"tool": 1}},
        {"rootfs": A, "deployment": {"etc": {"result": 1}}},
    ],
)
def test_a_record_that_cannot_be_true_is_an_error(record: object, tmp_path: Path) -> None:
    """P.11: a pin that is not understood would be no pin."""
    with pytest.raises(TargetError, match=re.escape(f"{A}/oci2boot.json is damaged")):
        read_deployments(state(tmp_path, A, json.dumps(record).encode()))


def test_a_record_without_end_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(Error):
        read_deployments(state(tmp_path, A, json.dumps({"rootfs": A}).encode().ljust((1 << 20) + 1)))


def test_what_is_no_state_of_a_deployment_is_left_alone_and_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="mine is not the state of a deployment"):
        read_deployments(state(tmp_path, "mine", b"{}"))
