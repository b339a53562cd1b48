"""Presets for who is to boot a UKI, and who would. C.28, D.10"""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oci2boot.boot.told import DIGEST_FILE
from oci2boot.cli.main import app
from oci2boot.errors import FormatError
from oci2boot.formats import cpio
from oci2boot.workflows.make.consumers import Consumer, settle
from oci2boot.workflows.requests import BootOptions, TreeOptions
from oci2boot.workflows.verify.accepted import explain_uki
from tests.boot.debian import package
from tests.tarballs import unpack
from tests.witness import program
from tests.workflows.sealable import EFI, KVER, base, uki

A, B, V1 = f"composefs={'ab' * 32}", f"composefs={'cd' * 64}", f"composefs.digest=v1-sha512-12:{'ef' * 64}"
OURS = cpio.file(b"usr/lib/oci2boot/setup-root", b"")
PEERS = cpio.file(b"usr/bin/composefs-setup-root", b"")
BOOTC = cpio.file(b"usr/lib/bootc/initramfs-setup", b"")


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


@pytest.mark.parametrize(("consumer", "version"), [("bootc", "2"), ("composefs-rs", "1")])
def test_a_preset_is_what_the_consumers_own_tool_computes(consumer: Consumer, version: str, tmp_path: Path) -> None:
    """cfsctl compute-karg, with the hash that both have by default: composefs-rs#197."""
    root = unpack(base(), tmp_path / "root")
    argv: list[str | Path] = [program("cfsctl"), "--hash", "sha512", "--erofs-version", version, "compute-karg", root]
    theirs = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    assert run("digest", f"dir:{root}", "--times", "exact", "--for", consumer, "--karg") == theirs
    run("uki", "build", "--rootfs", root, "--times", "exact", "--for", consumer, "--output", tmp_path / "x.efi")
    (line,) = explain_uki(tmp_path / "x.efi").lines
    assert line[0] == theirs


@pytest.mark.parametrize(
    ("tree", "boot", "algorithm"),
    [
        (TreeOptions(erofs_version=0), BootOptions(), None),
        (TreeOptions(), BootOptions(karg_style="digest"), None),
        (TreeOptions(), BootOptions(), "sha256"),
    ],
)
def test_what_contradicts_a_preset_is_refused(tree: TreeOptions, boot: BootOptions, algorithm: None) -> None:
    with pytest.raises(FormatError, match="--for bootc, which expects"):
        settle("bootc", algorithm, tree, boot)
    assert settle(None, algorithm, tree, boot) == (algorithm, tree, boot)
    same = settle("bootc", "sha512", replace(TreeOptions(), selinux_rules="composefs-rs"), BootOptions())
    assert same == settle("bootc", None, TreeOptions(), BootOptions())


def told(*digests: str) -> cpio.Member:
    return cpio.file(DIGEST_FILE, "".join(f"{digest}\n" for digest in digests).encode())


@pytest.mark.parametrize(
    ("line", "glue", "boots"),
    [
        (A, [OURS], "oci2boot"),
        (A, [PEERS], "composefs-rs"),
        (A, [BOOTC], ""),
        (A, [], ""),
        (B, [BOOTC], "bootc"),
        (f"{V1} {B}", [BOOTC], "bootc"),
        (f"{A} {B}", [OURS], ""),
        (f"{A} {B}", [OURS, told("ab" * 32)], ""),
        (f"{A} {B}", [OURS, told("ab" * 32, "cd" * 64)], "oci2boot"),
        (A, [OURS, told("cd" * 64)], ""),
    ],
)
def test_explain_says_who_boots_a_uki(line: str, glue: list[cpio.Member], boots: str, tmp_path: Path) -> None:
    """C.28"""
    (tmp_path / "x.efi").write_bytes(uki(f"rw {line}", b"ID=x\n", KVER, *glue))
    found = json.loads(run("explain", tmp_path / "x.efi", "--json"))
    (one,) = found["command_lines"]
    assert one["arguments"] == line
    assert " ".join(row["consumer"] for row in one["consumers"] if row["boots"]) == boots
    shown = run("explain", tmp_path / "x.efi")
    assert "CONSUMER" in shown


def test_what_is_no_uki_is_not_explained_alone(tmp_path: Path) -> None:
    (tmp_path / "x.efi").write_bytes(uki("rw root=LABEL=x"))
    with pytest.raises(FormatError, match="promises no composefs image"):
        explain_uki(tmp_path / "x.efi")
    with pytest.raises(FormatError, match="no UKI"):
        explain_uki(package("systemd-boot-efi") / EFI / "systemd-bootx64.efi")
