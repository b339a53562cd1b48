"""`oci2boot seal` from the command line."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from oci2boot.cli.main import main
from tests.cli.conftest import Run
from tests.oci.layouts import Layout, documents
from tests.workflows.sealable import add_image, base


def test_a_uki_over_its_budget_is_not_made(run: Run, tmp_path: Path) -> None:
    """C.19: by convert, seal and uki build; the parts and their sizes are named."""
    layout = Layout(tmp_path / "layout")
    add_image(layout, base(), "base")
    source, repo = f"oci:{layout.path}:base", ["--repo", tmp_path / "repo"]
    root = tmp_path / "root"
    for data in base():
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(root, filter="tar")
    for words in (
        ["convert", source, *repo],
        ["seal", source, f"oci:{layout.path}:sealed", *repo],
        ["uki", "build", "--rootfs", root],
    ):
        status, _, errors = run(*words, "--uki-limit", "64K", "--quiet")
        assert status == 1
        assert "65536 are allowed (MiB: kernel" in " ".join(errors.split())
    assert run("uki", "build", "--rootfs", root, "--uki-limit", "64M")[0] == 0


def test_a_dry_run_says_the_same_and_writes_no_image(run: Run, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    add_image(layout, base(), "base")
    words = ["seal", f"oci:{layout.path}:base", f"oci:{tmp_path}/out:x", "--repo", tmp_path / "repo", "--json"]
    status, output, _ = run(*words, "--dry-run")
    planned = json.loads(output)
    assert (status, planned.pop("written"), (tmp_path / "out").exists()) == (0, False, False)
    made = json.loads(run(*words)[1])
    assert made.pop("written") is True
    assert made == planned


def test_seal_prints_what_it_made_and_refuses_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "layout")
    add_image(layout, base(), "base")
    words = ["seal", f"oci:{layout.path}:base", f"oci:{layout.path}:sealed", "--repo", f"{tmp_path}/repo"]
    monkeypatch.setattr(sys, "argv", ["oci2boot", *words, "--json", "--quiet", "--karg-style", "digest"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    made = json.loads(capsys.readouterr().out)
    assert made.pop("written") is True
    manifest, _ = documents(layout.path, "sealed")
    assert made["layer"] == manifest["layers"][-1]["digest"]
    assert made["karg"] == f"composefs.digest=v1-sha256-12:{made['rootfs']}"
    assert manifest["layers"][-1]["annotations"] == {"io.oci2boot.uki.v1": made["karg"]}
    monkeypatch.setattr(sys, "argv", ["oci2boot", "seal", words[1], "dir:/nowhere", "--repo", f"{tmp_path}/repo"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith("error: dir:/nowhere cannot take an image\n")
