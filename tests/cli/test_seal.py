"""`oci2boot seal` from the command line."""

import json
import sys
from pathlib import Path

import pytest

from oci2boot.cli.main import main
from tests.oci.layouts import Layout
from tests.workflows.sealable import add_image, base, documents


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
    manifest, _ = documents(layout.path, "sealed")
    assert made["layer"] == manifest["layers"][-1]["digest"]
    assert made["karg"] == f"composefs.digest=v1-sha256-12:{made['rootfs']}"
    assert manifest["layers"][-1]["annotations"] == {"io.oci2boot.uki.v1": made["karg"]}
    monkeypatch.setattr(sys, "argv", ["oci2boot", "seal", words[1], "dir:/nowhere", "--repo", f"{tmp_path}/repo"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith("error: dir:/nowhere cannot take an image\n")
