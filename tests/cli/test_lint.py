"""`lint`, and the checks before `convert`, `seal` and `install`, as people and programs call them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.oci.layouts import Layout
from tests.workflows.lint.images import MODULES, Changes, good
from tests.workflows.sealable import KVER, add_image, tar

DEBIAN = {"vmlinuz": "vmlinuz", "initrd.img": "initramfs.img", "config": "config"}
"""Files in /boot by what they are called beside the modules."""
NO_INIT: Changes = {"usr/lib/systemd/systemd": None, "sbin/init": None}


def files(changes: Changes) -> dict[str, bytes | Path]:
    return {path: content for path, content in {**good(), **changes}.items() if content is not None}


def write(root: Path, changes: Changes) -> Path:
    for path, content in files(changes).items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            place.mkdir(exist_ok=True)
        elif isinstance(content, Path):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
            place.chmod(0o755)
    return root


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with images: of `good` and `debian` there is nothing to say, `bare` has no init, `small` cannot grow."""
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    add_image(layout, [tar(files({}), mode=0o755)], "good")
    add_image(layout, [tar(files(NO_INIT), mode=0o755)], "bare")
    add_image(layout, [tar(files({"usr/sbin/sfdisk": None}), mode=0o755)], "small")
    in_boot = {f"boot/{name}-{KVER}": good()[f"{MODULES}/{file}"] for name, file in DEBIAN.items()}
    gone = dict.fromkeys(f"{MODULES}/{file}" for file in DEBIAN.values())
    add_image(layout, [tar(files({**gone, **in_boot}), mode=0o755)], "debian")
    return layout.path


def test_a_directory_is_looked_at_and_nothing_is_stored(run: Run, tmp_path: Path) -> None:
    """P.12, C.28"""
    root = write(tmp_path / "root", {})
    assert run("lint", root, "-q")[:2] == (0, "37 checks: nothing found\n")
    status, output, _ = run("lint", write(tmp_path / "bare", NO_INIT), "-q")
    assert status == 0
    assert output.splitlines()[0].split() == ["CHECK", "SEVERITY", "FOUND", "HINT"]
    assert [line.split()[:2] for line in output.splitlines()[1:-1]] == [["init", "error"], ["systemd", "warning"]]
    assert output.splitlines()[-1] == "37 checks: 1 error, 1 warning"
    assert not (tmp_path / "data").exists()


def test_strict_is_status_1_and_what_is_left_out_is_not_looked_at(run: Run, tmp_path: Path) -> None:
    """P.12"""
    root = write(tmp_path / "root", NO_INIT)
    assert run("lint", root, "--strict", "-q")[0] == 1
    status, output, _ = run("lint", root, "--strict", "--skip", "init", "--skip", "systemd", "-q")
    assert (status, output) == (0, "35 checks: nothing found\n")
    status, _, errors = run("lint", root, "--skip", "intit", "-q")
    assert status == 1
    assert "there is no check intit" in errors


def test_programs_get_json_or_sarif(run: Run, layout: Path) -> None:
    """P.12"""
    words = ["lint", f"oci:{layout}:bare", "-q"]
    found = json.loads(run(*words, "--json")[1])
    assert [(one["lint"], one["severity"]) for one in found["findings"]] == [("init", "error"), ("systemd", "warning")]
    assert (found["subject"], found["ok"], len(found["checks"])) == (f"oci:{layout}:bare", False, 37)
    sarif = json.loads(run(*words, "--sarif")[1])
    assert [one["ruleId"] for one in sarif["runs"][0]["results"]] == ["init", "systemd"]


def test_the_list_names_every_check(run: Run) -> None:
    status, output, _ = run("lint", "--list")
    assert status == 0
    assert len(output.splitlines()) == 38
    listed = json.loads(run("lint", "--list", "--json")[1])
    (var_run,) = (one for one in listed if one["name"] == "var-run")
    assert (var_run["severity"], var_run["bootc"]) == ("error", True)
    assert "which image?" in run("lint")[2]


@pytest.mark.parametrize("command", ["convert", "seal"])
def test_the_same_checks_come_first(run: Run, layout: Path, tmp_path: Path, command: str) -> None:
    """P.12: what is missing is named before anything is made."""
    more = ["--name", "x"] if command == "convert" else [f"oci:{tmp_path}/out:x"]
    argv = [command, f"oci:{layout}:bare", *more, "--ukify", "builtin", "--repo", tmp_path / "repo", "-q"]
    status, _, errors = run(*argv, "--strict")
    assert status == 1
    assert "warning: the image has no init: neither" in errors
    assert "should pass every check, and fails 2: init, systemd" in errors
    assert not (tmp_path / "out/index.json").exists()
    status, _, errors = run(*argv)
    assert status == 0
    assert errors.splitlines()[0].endswith("[init]")
    assert run(*argv, "--strict", "--skip", "init", "--skip", "systemd")[0] == 0
    nowhere = [command, f"oci:{tmp_path}/nowhere:x", *argv[2:]]
    assert "no check intit" in run(*nowhere, "--skip", "intit")[2]


@pytest.mark.parametrize("command", ["convert", "seal"])
def test_what_is_found_again_while_it_is_made_is_said_once(
    run: Run, layout: Path, tmp_path: Path, command: str
) -> None:
    more = ["--name", "x"] if command == "convert" else [f"oci:{tmp_path}/out:x"]
    words = [command, f"oci:{layout}:small", *more, "--ukify", "builtin", "--repo", tmp_path / "repo", "-q"]
    assert run(*words)[2].count("will not grow") == 1


def test_an_event_names_its_check(run: Run, layout: Path, tmp_path: Path) -> None:
    """P.12"""
    words = ["convert", f"oci:{layout}:bare", "--name", "x", "--ukify", "builtin", "--progress-json"]
    events = [json.loads(line) for line in run(*words, "--repo", tmp_path / "repo")[2].splitlines()]
    assert [one["lint"] for one in events if one["event"] == "warned"] == ["init", "systemd"]


def test_an_installation_looks_at_what_it_writes(run: Run, layout: Path, tmp_path: Path) -> None:
    """P.12; a converted image has neither /boot nor /run, so what is said of them was said before."""
    repo = ["--repo", tmp_path / "repo", "-q"]
    assert run("convert", f"oci:{layout}:bare", "--name", "bare", "--ukify", "builtin", *repo)[0] == 0
    disk = tmp_path / "disk.raw"
    status, _, errors = run("install", "bare", "--target", disk, "--strict", *repo)
    assert status == 1
    assert "bare should pass every check, and fails 2: init, systemd" in errors
    assert not disk.exists()
    assert "[init]" in run("install", "bare", "--target", disk, *repo)[2]
    assert disk.exists()
    assert run("lint", "bare", "--strict", *repo)[0] == 1
    root, esp = tmp_path / "root", tmp_path / "esp"
    root.mkdir()
    esp.mkdir()
    words = ["install", "bare", "--target", root, "--esp", esp, "--no-nvram", "--allow-missing-verity"]
    assert "fails 2: init, systemd" in run(*words, "--strict", *repo)[2]
    assert list(root.iterdir()) == []


def test_what_a_conversion_has_taken_from_boot_is_not_missed(run: Run, layout: Path, tmp_path: Path) -> None:
    """A kernel in /boot is in the UKI by then, and no longer in the root file system."""
    repo = ["--repo", tmp_path / "repo", "-q"]
    assert run("convert", f"oci:{layout}:debian", "--name", "d", "--ukify", "builtin", "--strict", *repo)[0] == 0
    assert run("install", "d", "--target", tmp_path / "disk.raw", "--strict", "--dry-run", *repo)[0] == 0
    assert run("lint", "d", "--strict", *repo)[1].endswith("checks: nothing found\n")


def test_a_source_that_is_installed_is_looked_at_once(run: Run, layout: Path, tmp_path: Path) -> None:
    words = ["install", f"oci:{layout}:bare", "--target", tmp_path / "disk.raw", "--repo", tmp_path / "repo", "-q"]
    _, _, errors = run(*words)
    assert errors.count("[init]") == 1


@pytest.mark.demo
def test_what_a_real_debian_image_has(run: Run, demo_image: Callable[[str], Path], tmp_path: Path) -> None:
    """P.12: it boots, and some of what packages leave is of no use on a machine."""
    layout = demo_image("dracut")
    found = json.loads(run("lint", f"oci:{layout}:latest", "--repo", tmp_path / "repo", "--json", "-q")[1])
    by_check = {one["lint"]: one for one in found["findings"]}
    assert [name for name, one in by_check.items() if one["severity"] == "error"] == []
    assert "/run/adduser" in by_check["nonempty-run-tmp"]["paths"]
    assert by_check["machine-identity"]["paths"] == ["/var/lib/dbus/machine-id"]
    assert "/usr/share/demo/names/latin1-\\xe4" in by_check["utf8"]["paths"]
    assert "no systemd-bless-boot" in by_check["boot-counting"]["text"]
