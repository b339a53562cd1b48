"""`oci2boot convert --mode verity` from the command line, and from oci2boot.toml."""

import json
from pathlib import Path
from typing import Any

import pytest

from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.rootfs.mkfs import Compression
from tests.boot import debian
from tests.cli.conftest import Run
from tests.workflows.verity_images import make_image, make_signing


@pytest.fixture(autouse=True)
def erofs_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Debian 13's mkfs.erofs first on PATH."""
    monkeypatch.setenv("PATH", str(debian.erofs_utils("mkfs.erofs").parent), prepend=":")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_image(tmp_path_factory.mktemp("image")))


def converted(run: Run, *words: str | Path) -> dict[str, Any]:
    status, output, errors = run("convert", *words, "--mode", "verity", "--ukify", "builtin", "--quiet", "--json")
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    return found


def test_every_option_reaches_the_record(run: Run, source: str, tmp_path: Path) -> None:
    """K0.2, K0.4, K0.5, K1.7, K1.9, K1.13, K1.21"""
    words = [
        "--compression", "zstd,level=9", "--verity-hash", "sha512", "--verity-salt", "0a0b", "--verity-embedded",
        "--verity-karg", "systemd", "--verity-option", "panic-on-corruption", "--verity-option", "check-at-most-once",
        "--overlay", "/var", "--overlay", "/srv:tmpfs", "--no-verity-signature", "--verity-blocks", "3",
    ]  # fmt: skip
    found = converted(run, source, "--repo", tmp_path, *words)
    assert VerityOptions.from_json(found["options"]["verity"]) == VerityOptions(
        compression=Compression.parse("zstd,level=9"),
        verity=True,
        hash="sha512",
        salt=b"\x0a\x0b",
        blocks=3,
        place="embedded",
        signature=False,
        form="systemd",
        options=("panic-on-corruption", "check-at-most-once"),
        overlays=(Overlay("/var"), Overlay("/srv", "tmpfs")),
    )
    assert (found["mode"], found["verity"]["data_blocks"], found["verity"]["salt"]) == ("verity", 3, "0a0b")
    status, shown, _ = run("inspect", "layout:v", "--repo", tmp_path)
    assert status == 0, shown
    assert "root hash" in shown
    assert found["verity"]["root_hash"][:60] in shown.replace("\n", "")
    assert run("images", "--repo", tmp_path)[0] == 0
    assert run("verify", tmp_path, "--json")[0] == 0
    assert run("fsck", "--repo", tmp_path)[0] == 0


def test_the_key_for_secure_boot_signs_the_root_hash_too(run: Run, source: str, tmp_path: Path) -> None:
    """K1.1, K1.2"""
    signing = make_signing(tmp_path)
    assert signing.key
    key: list[str | Path] = ["--secureboot-key", signing.key, "--secureboot-certificate", signing.certificate]
    found = converted(run, source, "--repo", tmp_path / "repo", *key, "--overlay", "none")
    assert found["verity"]["signature_object"]
    assert found["verity"]["overlays"] == []
    other = make_signing(tmp_path, "other")
    assert other.key
    own: list[str | Path] = ["--verity-key", other.key, "--verity-certificate", other.certificate]
    differs = converted(run, source, "--repo", tmp_path / "repo", *key, *own, "--overlay", "none")
    assert differs["verity"]["root_hash"] == found["verity"]["root_hash"]
    assert differs["verity"]["signature_object"] != found["verity"]["signature_object"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "verity"], "--no-verity-signature"),
        (["--compression", "zstd"], "--compression is an option of --mode verity"),
        (["--no-verity"], "--verity is an option of --mode verity"),
        (["--overlay", "/var"], "--overlay is an option of --mode verity"),
        (["--no-verity-signature"], "--verity-signature is an option of --mode verity"),
        (["--mode", "verity", "--no-verity", "--verity-hash", "sha512"], "there is no hash tree"),
        (["--mode", "verity", "--no-verity", "--verity-signature"], "there is no hash tree"),
        (["--mode", "verity", "--no-verity", "--verity-option", "panic-on-corruption"], "--no-verity"),
        (["--mode", "verity", "--verity-embedded", "--verity-karg", "roothash"], "not found by the root hash alone"),
        (["--mode", "verity", "--verity-salt", "xyz"], "not a salt"),
        (["--mode", "verity", "--verity-blocks", "-1"], "not a number of blocks"),
        (["--mode", "verity", "--verity-blocks", "0"], "at least one must be guarded"),
        (["--mode", "verity", "--compression", "zstd,level=99"], "zstd has no level 99"),
        (["--mode", "verity", "--compression", "brotli"], "not a compression"),
        (["--mode", "verity", "--overlay", "/usr"], "would hide what is verified"),
        (["--mode", "verity", "--overlay", "none", "--overlay", "/var"], "name the places, or none"),
        (["--mode", "verity", "--verity-key", "k"], "--verity-certificate"),
        (["--mode", "verity", "--verity-certificate", "c"], "--verity-key"),
        (["--mode", "verity", "--no-verity-signature", "--flow", "vendor"], "--flow vendor"),
        (["--mode", "verity", "--no-verity-signature", "--plain"], "--plain"),
        (["--mode", "verity", "--no-verity-signature", "--karg", "root=/dev/sda"], "contradicts"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(run: Run, words: list[str], said: str, tmp_path: Path) -> None:
    """K0.16, K1.2"""
    status, _, errors = run("convert", "oci:/nowhere:v", "--repo", tmp_path / "repo", *words)
    assert status == 1
    assert said in " ".join(errors.split())
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    assert not (tmp_path / "repo").exists()


def test_one_file_describes_it(run: Run, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K1.3"""
    (tmp_path / "oci2boot.toml").write_text(
        f'[convert]\nsource = "{source}"\nname = "demo"\nrepo = "repo"\nmode = "verity"\ncompression = "lz4"\n'
        'verity-signature = false\noverlay = ["/var:tmpfs"]\nukify = "builtin"\n'
        'karg = ["rd.debug"]\nconsole = "serial"\n'
    )
    monkeypatch.chdir(tmp_path)
    status, _, errors = run("build")
    assert status == 0, errors
    found = json.loads(run("inspect", "demo", "--repo", "repo", "--json")[1])
    assert (found["mode"], found["verity"]["compression"]) == ("verity", "lz4")
    assert found["verity"]["overlays"] == ["/var:tmpfs"]
    assert {"rd.debug", "console=ttyS0,115200"} <= set(found["cmdline"].split())


def test_a_hook_of_convert_fails_it(run: Run, source: str, tmp_path: Path) -> None:
    """K0.7"""
    words = ["convert", source, "--repo", tmp_path, "--mode", "verity", "--no-verity-signature", "--ukify", "builtin"]
    status, _, errors = run(*words, "--attest-hook", "false")
    assert status == 1
    assert "--attest-hook" in errors
    assert run(*words, "--attest-hook", "cmp --quiet")[0] == 1  # the two files differ
    assert run(*words, "--attest-hook", "wc")[0] == 0
