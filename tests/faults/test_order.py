"""The order of what commands write, against a power cut: bytes before names, names before what refers to them.

A kill cannot show this, since the kernel goes on; so the calls are recorded and held to the rules of fsync(2) and
rename(2): a name is safe when its file was synced before it got it, and its directory after.
"""

from pathlib import Path, PurePosixPath

import pytest

from tests.faults.cuts import Call, Commands
from tests.faults.stage import BLESSER, SECOND, Stage
from tests.faults.witnesses import copied


def folders(top: Path) -> set[str]:
    return {str(path) for path in (top, *top.rglob("*")) if path.is_dir()}


def check_durable(calls: list[Call], top: Path, there: set[str]) -> None:
    """Nothing gets its name before its bytes are on the disk, and at the end all names are there too."""
    unsynced: set[str] = set()
    unnamed: set[str] = set()
    """Names whose directory has not been synced since they came."""
    known = set(there)
    ours = [call for call in calls if PurePosixPath(call.path).is_relative_to(top)]
    assert ours
    for call in ours:
        path = call.path
        match call.name:
            case "open":
                unnamed.add(path)
                unsynced.add(path)
            case "write" | "truncate":
                unsynced.add(path)
            case "mkdir" if path not in known:
                known.add(path)
                unnamed.add(path)
            case "symlink" | "mknod" | "link":
                unnamed.add(path)
            case "fsync":
                unsynced.discard(path)
                unnamed -= {name for name in unnamed if str(PurePosixPath(name).parent) == path}
            case "syncfs":
                unsynced.clear()
                unnamed.clear()
            case "unlink" | "rmdir":
                unnamed.discard(path)
                unsynced.discard(path)
            case "rename":
                late = {name for name in unsynced if name == path or name.startswith(f"{path}/")}
                assert not late, f"{call.target} got its name before its bytes were synced: {late}"
                unnamed = {name for name in unnamed if name != path and not name.startswith(f"{path}/")}
                unnamed.add(call.target)
                if path in known:
                    known.add(call.target)
    lost = {name for name in unnamed if not name.endswith("/lock")}
    assert not lost, f"a power cut would lose the names {lost}"


def changes_below(calls: list[Call], *tops: Path) -> list[int]:
    """Return the positions of the calls that name something below one of the folders."""
    return [
        position
        for position, call in enumerate(calls)
        if call.name in ("rename", "symlink", "link")
        and any(PurePosixPath(call.target or call.path).is_relative_to(top) for top in tops)
    ]


@pytest.fixture(scope="module")
def stage(run: Commands, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("ordered"), run)


def test_convert_names_what_is_on_the_disk(run: Commands, images: Path, tmp_path: Path) -> None:
    """B.8: objects, then streams and images, then references."""
    repo = tmp_path / "repo"
    for name in ("one", "two"):
        there = folders(tmp_path)
        run.succeed("convert", f"oci:{images}:{name}", "--name", name, "--repo", repo, log=True)
        calls = run.calls()
        check_durable(calls, tmp_path, there)
        objects, references = (
            changes_below(calls, repo / "objects"),
            changes_below(calls, repo / "streams/refs", repo / "images/refs"),
        )
        assert objects[-1] < references[0]
        synced = {call.path for call in calls[: references[0]] if call.name == "fsync"}
        assert {str(PurePosixPath(calls[at].target).parent) for at in objects} <= synced


def test_an_upgrade_changes_the_boot_directory_last(stage: Stage) -> None:
    """B.8: all that the entry needs is on the disk before the entry has a name."""
    stage.made.release(BLESSER, SECOND)
    work = stage.work(stage.one)
    root, esp = work / "root", work / "esp"
    there = folders(work)
    stage.command(work, "upgrade", "--quiet", log=True)
    calls = stage.run.calls()
    check_durable(calls, work, there)
    names, entries = changes_below(calls, root / "composefs", root / "state"), changes_below(calls, esp)
    assert names[-1] < entries[0]
    assert any(
        call.name == "syncfs" or call.path == str(root / "state/deploy") for call in calls[names[-1] : entries[0]]
    )
    last = calls[entries[-1]]
    assert last.name == "rename"
    assert last.target.endswith(".efi")

    stage.keep("upgraded", work)
    for words in (("rollback",), ("delete", stage.boots(work)[0][:12])):
        there = folders(work)
        stage.command(work, *words, log=True)
        check_durable(stage.run.calls(), work, there)


def test_a_first_installation_is_on_the_disk(stage: Stage, tmp_path: Path, run: Commands) -> None:
    """B.8: into directories, boot loader and entry after the rest."""
    root, esp = tmp_path / "root", tmp_path / "esp"
    root.mkdir()
    esp.mkdir()
    repo = copied(stage.made.repo, tmp_path / "repo")
    there = folders(tmp_path)
    run.succeed(
        "install", "demo", "--repo", repo, "--target", root, "--esp", esp, "--allow-missing-verity", "--quiet", log=True
    )
    calls = run.calls()
    for part in (root, esp):
        check_durable(calls, part, there)
    assert changes_below(calls, root)[-1] < changes_below(calls, esp)[0]
