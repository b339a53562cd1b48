"""What a machine may lack when it is upgraded: room, the registry, the time, a store that is understood."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.cuts import Commands
from tests.faults.stage import BLESSER, SECOND, Stage
from tests.faults.witnesses import check_boots, check_repository, copied, snapshot
from tests.witness import program


@pytest.fixture(scope="module")
def stage(run: Commands, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    made = Stage(tmp_path_factory.mktemp("short"), run)
    made.made.release(BLESSER, SECOND)
    return made


def upgrade_in(part: str, room: int, work: Path) -> subprocess.CompletedProcess[str]:
    """Upgrade with one part of a machine on a file system with so many bytes left; it is copied back afterwards."""
    size = int(subprocess.check_output(["du", "-s", "-B1", work / part]).split()[0]) + room
    small, command = work / "small", Path(sys.executable).with_name("oci2boot")
    small.mkdir()
    where = {"root": work / "root", "esp": work / "esp"} | {part: small}
    words = [command, "upgrade", "--quiet", "--sysroot", where["root"], "--esp", where["esp"]]
    script = f"""
        mount -t tmpfs -o size={size},mode=755 tmpfs {small} && cp -a {work}/{part}/. {small}/ || exit 99
        {shlex.join(map(str, words))}; status=$?
        rm -rf {work}/{part} && cp -a {small}/. {work}/{part}/
        exit $status
    """
    argv = [program("unshare"), "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", script]
    return subprocess.run(argv, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("part", ["esp", "root"])
def test_a_full_file_system_leaves_what_boots(part: str, stage: Stage) -> None:
    """B.8"""
    (old,) = stage.deployments(stage.one)
    work = copied(stage.one, stage.folder / f"full-{part}")
    done = upgrade_in(part, 24 << 10, work)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    *warnings, error = (line for line in done.stderr.splitlines() if not line.startswith("hint: "))
    assert error.startswith("error: ")
    assert all(line.startswith("warning: ") for line in warnings)
    assert check_boots(work / "root", work / "esp", stage.scratch) == old
    assert snapshot(work / "esp") == snapshot(stage.one / "esp")
    check_repository(work / "root/composefs")
    stage.command(work, "upgrade", "--quiet")
    assert check_boots(work / "root", work / "esp", stage.scratch) != old


def test_a_registry_that_goes_away_leaves_what_boots(stage: Stage) -> None:
    """P.11: the layers that have come stay, and the rest comes the next time."""
    (old,) = stage.deployments(stage.one)
    work = stage.work(stage.one)
    layout = stage.made.layout.path
    manifest = json.loads((layout / "index.json").read_text())["manifests"][-1]["digest"]
    layers = json.loads((layout / "blobs" / manifest.replace(":", "/")).read_text())["layers"]
    last = layout / "blobs" / layers[-1]["digest"].replace(":", "/")
    content = last.read_bytes()
    try:
        last.write_bytes(content[: len(content) // 2])
        ran = stage.run.run("upgrade", "--sysroot", work / "root", "--esp", work / "esp")
    finally:
        last.write_bytes(content)
    assert ran.status == 1
    assert "error: " in ran.output
    assert "Traceback" not in ran.output
    assert snapshot(work / "esp") == snapshot(stage.one / "esp")
    assert check_boots(work / "root", work / "esp", stage.scratch) == old
    check_repository(work / "root/composefs")
    stage.command(work, "upgrade", "--quiet")
    assert check_boots(work / "root", work / "esp", stage.scratch) != old


def test_a_clock_in_1970_does_not_stop_an_upgrade(stage: Stage) -> None:
    """B.8: the new entry is first, and can be rolled back."""
    (old,) = stage.deployments(stage.one)
    work = stage.work(stage.one)
    where = ["--sysroot", str(work / "root"), "--esp", str(work / "esp")]
    stage.run.succeed("upgrade", "--quiet", *where, now=5)
    assert check_boots(work / "root", work / "esp", stage.scratch) != old
    stage.run.succeed("rollback", *where, now=6)
    assert check_boots(work / "root", work / "esp", stage.scratch) == old


def test_only_one_command_changes_a_machine(stage: Stage) -> None:
    work = stage.work(stage.one)
    before = snapshot(work)
    with (work / "root/state/oci2boot/lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (["upgrade"], ["gc"], ["rollback"]):
            ran = stage.run.run(*words, "--sysroot", work / "root", "--esp", work / "esp")
            assert ran.status == 1
            assert "another oci2boot command is changing" in ran.output
    assert snapshot(work) == before


def test_a_store_of_a_newer_version_is_refused(stage: Stage) -> None:
    """composefs-rs 0.9, `features`: what is incompatible may not be touched."""
    work = stage.work(stage.one)
    meta = work / "root/composefs/meta.json"
    document = json.loads(meta.read_text())
    document["features"]["incompatible"] = ["from-the-future"]
    meta.unlink()
    meta.write_text(json.dumps(document))
    before = snapshot(work)
    for words in (["upgrade"], ["gc"], ["status"]):
        ran = stage.run.run(*words, "--sysroot", work / "root", "--esp", work / "esp")
        assert ran.status == 1
        assert "newer version" in ran.output
        assert "from-the-future" in ran.output
    assert snapshot(work) == before
