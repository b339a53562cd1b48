"""The store's commands, stopped at every change: what was there stays whole, and a second run completes."""

import shutil
from pathlib import Path

import pytest

from tests.faults.cuts import KILLED, Commands, spread
from tests.faults.witnesses import check_repository, copied, snapshot

NO_TRACE = r"(^|/)\.(staging-|.*\.tmp$)"
"""What a stopped command may leave until the next gc."""


@pytest.fixture(scope="module")
def one(run: Commands, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one image."""
    repo = tmp_path_factory.mktemp("one") / "repo"
    convert(run, images, repo, "one")
    return repo


@pytest.fixture(scope="module")
def two(run: Commands, images: Path, one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two images."""
    repo = copied(one, tmp_path_factory.mktemp("two") / "repo")
    convert(run, images, repo, "two")
    return repo


def convert(run: Commands, images: Path, repo: Path, name: str, *, limit: int = 0) -> int:
    ran = run.run("convert", f"oci:{images}:{name}", "--name", name, "--repo", repo, "--quiet", limit=limit)
    assert ran.status == (KILLED if limit else 0), ran.output
    return ran.changes


def test_convert_stopped_anywhere(run: Commands, images: Path, one: Path, two: Path, tmp_path: Path) -> None:
    """B.8, O.2"""
    repo = tmp_path / "repo"
    changes = convert(run, images, copied(one, repo), "two")
    wanted = snapshot(two)
    assert snapshot(repo) == wanted
    before = snapshot(one)
    cuts = spread(changes, 50)
    for cut in cuts:
        convert(run, images, copied(one, repo), "two", limit=cut)
        left = snapshot(repo)
        assert {path: left.get(path) for path in before} == before, f"change {cut} lost something"
        check_repository(repo)
        run.succeed("fsck", "--repo", repo)
        convert(run, images, repo, "two")
        assert snapshot(repo, without=NO_TRACE) == wanted, f"after change {cut}"
        run.succeed("gc", "--repo", repo)
        assert snapshot(repo) == wanted, f"after change {cut}"
    assert len(cuts) == 50


def test_the_first_convert_stopped_anywhere(run: Commands, images: Path, one: Path, tmp_path: Path) -> None:
    """B.8"""
    repo = tmp_path / "repo"
    changes = convert(run, images, repo, "one")
    wanted = snapshot(one)
    assert snapshot(repo) == wanted
    for cut in spread(changes, 35):
        shutil.rmtree(repo)
        convert(run, images, repo, "one", limit=cut)
        check_repository(repo)
        convert(run, images, repo, "one")
        run.succeed("gc", "--repo", repo)
        assert snapshot(repo) == wanted, f"after change {cut}"


def test_gc_stopped_anywhere(run: Commands, one: Path, two: Path, tmp_path: Path) -> None:
    """B.8, D.20"""
    forgotten, repo = copied(two, tmp_path / "forgotten"), tmp_path / "repo"
    run.succeed("images", "--remove", "two", "--repo", forgotten)
    changes = run.succeed("gc", "--repo", copied(forgotten, repo)).changes
    wanted = snapshot(repo)
    files = {path for path, what in snapshot(one).items() if not what.startswith("4")}
    assert {path for path, what in wanted.items() if not what.startswith("4")} == files
    for cut in spread(changes, 30):
        ran = run.run("gc", "--repo", copied(forgotten, repo), limit=cut)
        assert ran.status == KILLED
        check_repository(repo)
        run.succeed("fsck", "--repo", repo)
        run.succeed("gc", "--repo", repo)
        assert snapshot(repo) == wanted, f"after change {cut}"


def test_forgetting_an_image_stopped_anywhere(run: Commands, two: Path, tmp_path: Path) -> None:
    """B.8"""
    repo = tmp_path / "repo"
    changes = run.succeed("images", "--remove", "two", "--repo", copied(two, repo)).changes
    run.succeed("gc", "--repo", repo)
    wanted = snapshot(repo)
    for cut in spread(changes, 10):
        ran = run.run("images", "--remove", "two", "--repo", copied(two, repo), limit=cut)
        assert ran.status == KILLED
        check_repository(repo)
        run.run("images", "--remove", "two", "--repo", repo)
        run.succeed("gc", "--repo", repo)
        assert snapshot(repo) == wanted, f"after change {cut}"
