"""`verify`, `explain` and `inspect --manifest` as people and programs call them."""

import json
from pathlib import Path

import pytest

from oci2boot.formats.fsverity import measure
from tests.cli.conftest import Run
from tests.flips import damaged
from tests.workflows.disks import BIG, Demo, find, installed, layers


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return installed(tmp_path_factory.mktemp("demo"), layers())


def test_an_intact_disk_is_status_0_and_a_table(run: Run, demo: Demo) -> None:
    status, output, _ = run("verify", demo.disk, "-q")
    assert status == 0
    assert output.splitlines()[0].split() == ["CHECK", "RESULT", "EVIDENCE"]
    assert output.splitlines()[-1] == f"{demo.disk} (disk): intact"


def test_a_damaged_disk_is_status_1_and_names_the_check(run: Run, demo: Demo) -> None:
    with damaged(demo.disk, find(demo.disk, BIG[500_000:501_000])):
        status, output, _ = run("verify", demo.disk, "-q")
        assert status == 1
        assert f"object {measure(BIG)}" in output
        assert "1 of 13 checks failed" in output
        status, output, _ = run("verify", demo.disk, "--json", "-q")
    found = json.loads(output)
    assert (status, found["ok"]) == (1, False)
    assert [check["result"] for check in found["checks"]].count("failed") == 1


def test_a_manifest_that_inspect_prints_holds_the_disk(run: Run, demo: Demo, tmp_path: Path) -> None:
    """K0.6, K0.10"""
    status, output, _ = run("inspect", "demo", "--manifest", "--repo", demo.repo)
    assert status == 0
    assert run("inspect", "demo", "--manifest", "--repo", demo.repo)[1] == output
    manifest = tmp_path / "manifest.json"
    manifest.write_text(output)
    assert run("verify", demo.disk, "--against", manifest, "-q")[0] == 0
    manifest.write_text(output.replace('"mode": "0644"', '"mode": "0600"', 1))
    status, output, _ = run("verify", demo.disk, "--against", manifest, "-q")
    assert status == 1
    assert "mode: 0600 in the manifest, 0644 here" in output


def test_explain_tells_equal_from_different(run: Run, demo: Demo) -> None:
    """B.3"""
    words = ["--repo", demo.repo, "-q"]
    assert "equal" in run("explain", "demo", demo.disk, *words)[1]
    status, output, _ = run("explain", "demo", "ab" * 32, *words)
    assert status == 0
    assert "another tree" in output
    dump = b"/ 0 40755 2 0 0 0 1.0 - - -\n/%b 0 100644 1 0 0 0 1.0 - - -\n"
    for name in ("one", "other"):
        (demo.repo.parent / name).write_bytes(dump % name.encode())
    status, output, _ = run("explain", demo.repo.parent / "one", demo.repo.parent / "other", "--json", *words)
    assert [(row["path"], row["b"]) for row in json.loads(output)["differences"]] == [
        ("/one", "absent"),
        ("/other", "file"),
    ]
    assert "PATH" in run("explain", demo.repo.parent / "one", demo.repo.parent / "other", *words)[1]


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "/nowhere"),
        ("verify", "/dev/null"),
        ("verify", "/"),
        ("verify", "{disk}", "--against", "/nowhere"),
        ("verify", "{disk}", "--db", "/dev/null"),
        ("verify", "{disk}", "--db", "{disk}"),
        ("explain", "ab" * 32, "cd" * 32),
        ("explain", "oci:/nowhere", "ab" * 32),
        ("inspect", "nothing", "--manifest"),
    ],
    ids=" ".join,
)
def test_a_request_that_makes_no_sense_is_one_sentence(run: Run, demo: Demo, words: tuple[str, ...]) -> None:
    status, output, errors = (
        run(*(word.format(disk=demo.disk) for word in words), "-q") if words[0] != "inspect" else run(*words)
    )
    assert status == 1
    assert output == ""
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
