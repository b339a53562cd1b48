"""Commands that change an installed machine, stopped at every change: it still boots, and a second run completes.

The machine lies in two folders. What it would boot is found as systemd-boot does, and measured by fsverity-utils.
"""

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.faults.cuts import KILLED, Commands, spread
from tests.faults.stage import BLESSER, NOW, SECOND, THIRD, Stage
from tests.faults.witnesses import check_boots, check_deployment, check_repository, entries, snapshot


@pytest.fixture(scope="module")
def stage(run: Commands, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("machines"), run)


@pytest.fixture(scope="module")
def two(stage: Stage) -> Path:
    return stage.upgrade("two", stage.one, BLESSER, SECOND)


def stopped_anywhere(
    stage: Stage, start: Path, words: tuple[str, ...], *, cuts: int, kept: set[str], then: set[str]
) -> None:
    """Stop a command at `cuts` places: the deployments `kept` stay bootable, one of `then` or `kept` boots first."""
    work = stage.work(start)
    changes = stage.command(work, *words)
    stage.command(work, "gc")
    wanted = snapshot(work)
    last = check_boots(work / "root", work / "esp", stage.scratch)
    assert last in then
    done = set()
    for cut in spread(changes, cuts):
        work = stage.work(start)
        stage.command(work, *words, limit=cut)
        where = f"stopped at change {cut} of {changes}"
        assert check_boots(work / "root", work / "esp", stage.scratch) in kept | then, where
        assert kept <= set(stage.boots(work)), where
        for digest in kept:
            check_deployment(work / "root", digest, stage.scratch)
        check_repository(work / "root/composefs")
        stage.run.succeed("fsck", "--repo", work / "root/composefs", "--quiet")
        stage.command(work, *words)
        stage.command(work, "gc")
        assert snapshot(work) == wanted, where
        done.add(cut)
    assert len(done) == min(cuts, changes)


def test_upgrade_stopped_anywhere(stage: Stage, two: Path) -> None:
    """B.8, P.11, D.17"""
    one, new = stage.digests[:2]
    stage.made.release(BLESSER, SECOND)
    stopped_anywhere(stage, stage.one, ("upgrade", "--quiet"), cuts=30, kept={one}, then={new})
    upper = two / "root/state/deploy" / new / "etc/upper"
    assert (upper / "hostname").read_text() == "box\n"


def test_a_second_upgrade_stopped_anywhere(stage: Stage, two: Path) -> None:
    """B.8, D.20"""
    one, new = stage.digests[:2]
    third = stage.upgrade("three", two, BLESSER, THIRD)
    (newest,) = stage.deployments(third) - {one, new}
    stopped_anywhere(stage, two, ("upgrade", "--quiet"), cuts=14, kept={new}, then={newest})


def test_rollback_stopped_anywhere(stage: Stage, two: Path) -> None:
    """B.8, P.11"""
    one, new = stage.digests[:2]
    stopped_anywhere(stage, two, ("rollback", one[:12]), cuts=10, kept={one, new}, then={one})


def test_delete_stopped_anywhere(stage: Stage, two: Path) -> None:
    """B.8, D.20"""
    one, new = stage.digests[:2]
    work = stage.work(two)
    words = ("delete", one[:12])
    changes = stage.command(work, *words)
    stage.command(work, "gc")
    wanted = snapshot(work)
    for cut in spread(changes, 10):
        work = stage.work(two)
        stage.command(work, *words, limit=cut)
        assert check_boots(work / "root", work / "esp", stage.scratch) == new
        check_repository(work / "root/composefs")
        where = ["--sysroot", str(work / "root"), "--esp", str(work / "esp")]
        stage.run.run(*words, *where, now=NOW)  # it may be gone already
        stage.command(work, "gc")
        assert snapshot(work) == wanted, f"stopped at change {cut} of {changes}"


def test_gc_of_a_machine_stopped_anywhere(stage: Stage, two: Path) -> None:
    """B.8"""
    one, new = stage.digests[:2]
    work = stage.work(two)
    stage.command(work, "delete", one[:12])
    deleted = stage.keep("deleted", work)
    stopped_anywhere(stage, deleted, ("gc",), cuts=12, kept={new}, then={new})


def test_an_installation_into_directories_stopped_anywhere(stage: Stage, run: Commands, tmp_path: Path) -> None:
    """B.8, P.8: there is no boot entry before all that it needs is there."""
    root, esp = tmp_path / "root", tmp_path / "esp"
    words = ("install", "demo", "--repo", stage.made.repo, "--target", root, "--esp", esp, "--allow-missing-verity")

    def install(limit: int = 0) -> int:
        ran = run.run(*words, "--quiet", limit=limit, now=NOW)
        assert ran.status == (KILLED if limit else 0), ran.output
        return ran.changes

    def empty() -> None:
        for path in (root, esp):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()

    empty()
    changes = install()
    stage.command(tmp_path, "gc")
    wanted = snapshot(root) | snapshot(esp)
    for cut in spread(changes, 18):
        empty()
        install(limit=cut)
        if list(entries(esp, stage.scratch)):
            check_boots(root, esp, stage.scratch)
        check_repository(root / "composefs")
        install()
        stage.command(tmp_path, "gc")
        assert snapshot(root) | snapshot(esp) == wanted, f"stopped at change {cut} of {changes}"


def test_a_disk_image_stopped_anywhere(stage: Stage, run: Commands, tmp_path: Path) -> None:
    """B.8, P.8: the disk that was there stays until the new one is whole, and no part of that is left."""
    disk = tmp_path / "folder/disk.raw"
    words = ("install", "demo", "--repo", stage.made.repo, "--target", disk, "--wipe", "--quiet")
    disk.parent.mkdir()
    changes = run.succeed(*words).changes
    wanted = hashlib.sha256(disk.read_bytes()).digest()
    for cut in spread(changes, 6):
        disk.write_bytes(b"the disk before")
        ran = run.run(*words, limit=cut)
        assert ran.status == KILLED
        content = disk.read_bytes()
        assert content == b"the disk before" or hashlib.sha256(content).digest() == wanted
        run.succeed(*words)
        assert hashlib.sha256(disk.read_bytes()).digest() == wanted
