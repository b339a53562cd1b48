"""A disk with two slots, from the command line: install --ab, status, upgrade, switch and rollback with --disk."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from oci2boot.sysroot import machine
from tests.cli.conftest import Run
from tests.oci.layouts import Layout
from tests.partitions import table
from tests.status_schema import check_status
from tests.target.disks import said
from tests.workflows.verity_images import Publisher, make_signing


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(Layout(tmp_path / "layout"))


def told(run: Run, *words: str | Path) -> dict[str, Any]:
    status, output, errors = run(*words, "--json")
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    return found


def verified(disk: Path, root_hash: str, folder: Path) -> None:
    parts = {part["uuid"].lower().replace("-", ""): part for part in table(disk)}
    for name, half in (("data", root_hash[:32]), ("tree", root_hash[-32:])):
        with disk.open("rb") as file:
            file.seek(parts[half]["start"])
            (folder / name).write_bytes(file.read(parts[half]["size"]))
    said("veritysetup", "verify", folder / "data", folder / "tree", root_hash)


def test_the_life_of_a_disk_image(run: Run, publisher: Publisher, tmp_path: Path) -> None:
    """P.11, K0.1: from its source, with the key that made it."""
    signing = make_signing(tmp_path)
    keys: list[str | Path] = ["--secureboot-key", str(signing.key), "--secureboot-certificate", signing.certificate]
    repo: list[str | Path] = ["--repo", tmp_path / "repo"]
    disk = tmp_path / "disk.raw"
    publisher.release(b"one")
    first = told(run, "convert", publisher.source, *repo, "--mode", "verity", "--ukify", "builtin", *keys, "--quiet")
    told(run, "install", *repo, "--target", disk, "--ab", "--root-size", "8M", "--esp-size", "300M", "--quiet")
    assert [part["size"] for part in table(disk) if part["type"] == table(disk)[1]["type"]] == [8 << 20] * 2
    assert told(run, "verify", disk)["ok"]
    found = check_status(told(run, "status", "--disk", disk))
    (slot,) = found["deployments"]
    for lacking in ("id", "root_hash", "partitions", "signed", "entries"):
        with pytest.raises(jsonschema.ValidationError):
            check_status({**found, "deployments": [{key: slot[key] for key in slot if key != lacking}]})
    for lacking in ("disk", "free", "mode"):
        with pytest.raises(jsonschema.ValidationError):
            check_status({key: found[key] for key in found if key != lacking})
    assert (slot["root_hash"], slot["states"], slot["signed"]) == (first["verity"]["root_hash"], ["next"], True)
    assert [one["empty"] for one in found["free"]] == [True]
    assert told(run, "upgrade", "--disk", disk, *repo, *keys, "--check")["outcome"] == "up to date"

    publisher.release(b"two")
    before = subprocess.run(["sha256sum", disk], check=True, capture_output=True).stdout
    assert told(run, "upgrade", "--disk", disk, *repo, *keys, "--check")["outcome"] == "available"
    assert subprocess.run(["sha256sum", disk], check=True, capture_output=True).stdout == before
    status, _, errors = run("upgrade", "--disk", disk, *repo)
    assert status == 1
    assert "was signed when it was converted" in errors
    assert told(run, "upgrade", "--disk", disk, *repo, *keys, "--download-only", "--quiet")["outcome"] == "downloaded"
    assert subprocess.run(["sha256sum", disk], check=True, capture_output=True).stdout == before
    done = told(run, "upgrade", "--disk", disk, *repo, *keys, "--quiet")
    assert done["outcome"] == "deployed"
    second = done["plan"]["root_hash"]
    found = check_status(told(run, "status", "--disk", disk))
    assert [one["root_hash"] for one in found["deployments"]] == [second, slot["root_hash"]]
    assert found["problems"] == []
    assert told(run, "verify", disk)["ok"]
    assert found["next"] == second
    for root_hash in (second, slot["root_hash"]):
        verified(disk, root_hash, tmp_path)
    assert told(run, "upgrade", "--disk", disk, *repo, *keys)["outcome"] == "up to date"
    assert second[:12] in run("status", "--disk", disk)[1]

    assert told(run, "rollback", "--disk", disk)["root_hash"] == slot["root_hash"]
    assert told(run, "status", "--disk", disk)["next"] == slot["root_hash"]
    assert told(run, "upgrade", "--disk", disk, *repo, *keys)["outcome"] == "rejected"

    other = publisher.release(b"three", "w")
    words = ["switch", other, "--disk", disk, *repo, *keys, "--quiet"]
    assert told(run, *words, "--dry-run")["outcome"] == "available"
    assert "1 layers, " in run(*words, "--dry-run")[1]
    done = told(run, *words)
    found = check_status(told(run, "status", "--disk", disk))
    assert [one["root_hash"] for one in found["deployments"]] == [done["plan"]["root_hash"], slot["root_hash"]]
    assert found["deployments"][0]["source"] == other
    verified(disk, found["next"], tmp_path)


def test_what_such_a_machine_cannot_do_is_said(
    run: Run, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = tmp_path / "cmdline"
    line.write_text(f"quiet roothash={'ab' * 32}\n")
    monkeypatch.setattr(machine, "COMMAND_LINE", line)
    for words in (["pin", "abcd"], ["delete", "abcd"], ["reset"], ["kargs", "list"]):
        status, _, errors = run(*words)
        assert status == 1
        assert "root file system is under dm-verity: it has two slots" in " ".join(errors.split()), words
    status, _, errors = run("status")
    assert status == 1
    assert "partition of the root file system is not at" in " ".join(errors.split())
    publisher.release(b"one")
    told(run, "convert", publisher.source, "--repo", tmp_path / "repo", "--ukify", "builtin", "--quiet")
    refused: list[tuple[list[str | Path], str]] = [
        (["install", "--repo", tmp_path / "repo", "--target", tmp_path / "d", "--ab"], "needs no second slot"),
        (["install", "--repo", tmp_path / "repo", "--target", tmp_path / "d", "--root-size", "9G"], "give --ab too"),
        (["status", "--disk", tmp_path / "none"], "there is no disk"),
        (["upgrade", "--disk", tmp_path / "cmdline", "--sysroot", tmp_path], "exclude each other"),
        (["upgrade", "--disk", tmp_path / "cmdline", "--apply"], "--disk names another one"),
        (["status", "--disk", tmp_path / "cmdline"], "no GUID partition table"),
    ]
    for arguments, message in refused:
        status, _, errors = run(*arguments)
        assert status == 1
        assert message in " ".join(errors.split()), errors


@pytest.mark.parametrize(
    "words",
    [
        ("upgrade", "--keep", "3"),
        ("upgrade", "--etc", "ours"),
        ("upgrade", "--soft-reboot"),
        ("switch", "oci:layout:v", "--etc", "ours"),
        ("switch", "oci:layout:v", "--soft-reboot"),
        ("switch", "oci:layout:v", "--flow", "sealed"),
        ("switch", "oci:layout:v", "--allow-missing-verity"),
    ],
)
def test_options_for_deployments_in_directories_are_refused(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    """P.11: none is passed over in silence."""
    (disk := tmp_path / "disk").write_bytes(b"")
    option = next(word for word in words if word.startswith("--"))
    status, _, errors = run(*words, "--disk", disk)
    assert status == 1
    assert f"{option} is not for a root file system under dm-verity" in " ".join(errors.split())
