"""The command line: what it prints, and that bad input is status 1 and one sentence, never a traceback."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.errors import Error
from oci2boot.workflows.options import parse_size
from tests.cli.conftest import Run
from tests.flips import flip
from tests.witness import VECTORS, program

EXPECTED = json.loads((VECTORS / "oci.json").read_text())
PLAIN = f"oci:{VECTORS}/oci/boot-sysroot:v"
DIGESTS = EXPECTED["boot-sysroot"]["composefs-rs 0.9"]


@pytest.mark.parametrize("form", ["plain", "bootable"])
@pytest.mark.parametrize(("version", "algorithm"), [(1, "sha256"), (1, "sha512"), (2, "sha256"), (2, "sha512")])
def test_digest_prints_only_the_digest(run: Run, version: int, algorithm: str, form: str) -> None:
    """D.11, P.3; the digests are composefs-rs 0.9's."""
    words = ["digest", PLAIN, "--hash", algorithm, "--erofs-version", str(version), f"--{form}"]
    expected = DIGESTS[f"v{version}_{algorithm}"][form]
    assert run(*words)[:2] == (0, expected + "\n")
    assert run(*words, "--karg")[1] == f"composefs={expected}\n"
    assert (
        run(*words, "--karg", "--karg-style", "digest")[1] == f"composefs.digest=v{version}-{algorithm}-12:{expected}\n"
    )
    shown = json.loads(run(*words, "--json")[1])
    assert shown["digest"] == expected
    assert shown["rules"] == "canonical-1"


def test_digest_stores_nothing(run: Run, tmp_path: Path) -> None:
    run("digest", PLAIN)
    assert list(tmp_path.iterdir()) == []


def test_a_dump_file_stands_for_its_tree(run: Run, tmp_path: Path) -> None:
    """P.3: what `--dumpfile` prints, C's reader turns into the same image."""
    status, dump, _ = run("digest", PLAIN, "--dumpfile")
    assert status == 0
    file = tmp_path / "tree.dump"
    file.write_text(dump)
    expected = DIGESTS["v1_sha256"]["bootable"]
    assert run("digest", f"dumpfile:{file}")[1] == expected + "\n"
    tool = tmp_path / "mkcomposefs"
    tool.symlink_to(program("cfsctl"))
    said = subprocess.run(
        [tool, "--from-file", "--min-version=1", "--print-digest-only", file],
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == expected


def test_convert_keeps_the_image_and_tells_of_it(run: Run) -> None:
    status, output, errors = run("convert", PLAIN, "--no-boot", "--json", "--name", "demo")
    assert status == 0
    assert json.loads(output)["rootfs"] == DIGESTS["v1_sha256"]["bootable"]
    assert "unpacked" in errors
    assert "already stored" in run("convert", PLAIN, "--no-boot", "--name", "again")[2]
    assert [image["name"] for image in json.loads(run("images", "--json")[1])] == ["again", "demo"]
    assert "demo" in run("images")[1]
    assert json.loads(run("inspect", "demo", "--json")[1])["kind"] == "converted image"
    assert json.loads(run("inspect", PLAIN, "--json")[1])["manifest"] == EXPECTED["boot-sysroot"]["manifest"]
    status, output, _ = run("fsck")
    assert (status, output.rpartition(": ")[2]) == (0, "ok\n")
    assert run("images", "--remove", "again")[0] == 0
    assert json.loads(run("gc", "--dry-run", "--json")[1])["objects"] != []
    assert "freed" in run("gc")[1]
    assert json.loads(run("fsck", "--json")[1])["ok"] is True


def test_a_directory_is_converted_without_a_registry(run: Run, tmp_path: Path) -> None:
    """C.28"""
    root = tmp_path / "root"
    for name in ("usr/bin", "etc", "boot", "sysroot", "run"):
        (root / name).mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"x" * 5000)
    status, output, _ = run("convert", f"dir:{root}", "--no-boot", "--times", "exact", "--json")
    assert status == 0
    said = subprocess.run(
        [program("cfsctl"), "--hash", "sha256", "--erofs-version", "1", "compute-id", "--bootable", root],
        check=True,
        capture_output=True,
        text=True,
    )
    digest = said.stdout.strip().rpartition(":")[2]
    assert json.loads(output)["rootfs"] == digest
    assert run("digest", str(root), "-q", "--times", "exact")[1] == digest + "\n"


def test_a_digest_goes_into_an_initramfs(run: Run, tmp_path: Path) -> None:
    """C.16: the file that setup-root reads, as GNU cpio unpacks it after the initramfs before it."""
    status, output, _ = run("digest", PLAIN, "--initramfs", tmp_path / "digest.cpio")
    digest = DIGESTS["v1_sha256"]["bootable"]
    assert (status, output) == (0, f"{digest}\n")
    archive = (tmp_path / "digest.cpio").read_bytes()
    assert len(archive) % 4 == 0
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    argv = [program("cpio"), "--extract", "--quiet", "--make-directories", "--no-absolute-filenames"]
    subprocess.run(argv, cwd=unpacked, input=archive, check=True)
    assert (unpacked / "usr/lib/composefs/rootfs.digest").read_text() == f"{digest}\n"
    status, _, errors = run("digest", PLAIN, "--initramfs", tmp_path / "nowhere/digest.cpio")
    assert (status, errors.count("error:")) == (1, 1)


def test_fsck_fails_where_the_store_is_damaged(run: Run, tmp_path: Path) -> None:
    run("convert", PLAIN, "--no-boot")
    victim = max((tmp_path / "data/oci2boot/repo/objects").rglob("*/*"), key=lambda path: path.stat().st_size)
    victim.write_bytes(b"other")
    status, output, _ = run("fsck")
    assert status == 1
    assert "is damaged" in output


def test_progress_is_there_for_programs(run: Run) -> None:
    """P.12"""
    errors = run("convert", PLAIN, "--no-boot", "--progress-json")[2]
    events = [json.loads(line) for line in errors.splitlines()]
    assert {"step", "told"} <= {event["event"] for event in events}


def layout(tmp_path: Path, name: str) -> Path:
    copy = tmp_path / name
    shutil.copytree(VECTORS / "oci/boot-sysroot", copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


def damaged_layer(tmp_path: Path) -> str:
    copy = layout(tmp_path, "damaged")
    largest = max((copy / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    flip(largest, 700)
    return f"oci:{copy}:v"


def truncated_layer(tmp_path: Path) -> str:
    copy = layout(tmp_path, "truncated")
    largest = max((copy / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-512])
    return f"oci:{copy}:v"


def not_an_image(tmp_path: Path) -> str:
    (tmp_path / "empty").mkdir()
    return f"oci:{tmp_path}/empty"


BAD_SOURCES: dict[str, Callable[[Path], str]] = {
    "damaged layer": damaged_layer,
    "truncated layer": truncated_layer,
    "not an image": not_an_image,
    "no such layout": lambda tmp_path: f"oci:{tmp_path}/nowhere",
    "no such tag": lambda _: f"oci:{VECTORS}/oci/plain:other",
    "no such registry": lambda _: "docker://127.0.0.1:1/demo",
    "a layer that leaves the root": lambda _: f"oci:{VECTORS}/oci/dotdot:v",
    "no /usr": lambda tmp_path: f"dir:{tmp_path}",
    "no such directory": lambda tmp_path: f"dir:{tmp_path}/nowhere",
    "a broken dump": lambda _: f"dumpfile:{VECTORS}/dumps.json",
    "a transport of others": lambda _: "containers-storage:demo",
    "nonsense": lambda _: "§§",
}


@pytest.mark.parametrize("verb", ["digest", "convert"])
@pytest.mark.parametrize("source", BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_a_bad_source_is_one_sentence(run: Run, verb: str, source: Callable[[Path], str], tmp_path: Path) -> None:
    status, output, errors = run(verb, source(tmp_path), "--tls-verify=false")
    assert status == 1
    assert output == ""
    said = [line for line in errors.splitlines() if not line.startswith(("warning:", "layer "))]
    assert said[0].startswith("error: ")
    assert len(said) <= 2
    assert "Traceback" not in errors
    assert run("images", "--json")[1] == "[]\n"


def test_an_error_can_be_read_by_programs(run: Run, tmp_path: Path) -> None:
    status, output, _ = run("digest", f"oci:{tmp_path}/nowhere", "--json")
    assert status == 1
    assert set(json.loads(output)) == {"error", "hint"}


@pytest.mark.parametrize(
    "words",
    [
        ("install", "--target", "x.raw"),
        ("install", "nothing", "--target", "x.raw", "--size", "ten"),
        ("install",),
        ("fsck",),
        ("gc",),
        ("images", "--remove", "nothing"),
        ("convert", PLAIN, "--no-boot", "--name", "../x"),
        ("digest", PLAIN, "--platform", "linux/arm64"),
        ("digest", PLAIN, "--erofs-version", "0", "--karg", "--karg-style", "digest"),
    ],
    ids=" ".join,
)
def test_a_request_that_makes_no_sense_is_one_sentence(run: Run, words: tuple[str, ...]) -> None:
    status, _, errors = run(*words)
    assert status == 1
    assert "error: " in errors
    assert "Traceback" not in errors


def test_a_name_that_no_image_has_is_not_looked_for_elsewhere(run: Run) -> None:
    run("convert", PLAIN, "--no-boot", "--name", "demo")
    status, _, errors = run("install", "dem:o", "--target", "x.raw")
    assert status == 1
    assert "no image is called 'dem:o'" in errors
    assert "there is demo" in errors


def test_words_are_shown_as_they_are(run: Run) -> None:
    assert "':x:[bold]'" in run("digest", ":x:[bold]")[2]


def test_a_store_that_cannot_be_written_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    status, _, errors = run("convert", PLAIN, "--no-boot", "--repo", tmp_path / "file/repo")
    assert status == 1
    assert "not a directory" in errors


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512M", 512 << 20), ("10GiB", 10 << 30), ("4k", 4096), ("1T", 1 << 40)]
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1X", "9" * 30])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Error):
        parse_size(text)


def test_help_and_version_are_there(run: Run) -> None:
    """O.16: the version names the status and the formats."""
    assert "experimental" in run("--version")[1]
    for verb in ("convert", "install", "digest", "inspect", "images", "fsck", "gc"):
        status, output, _ = run(verb, "--help")
        assert status == 0
        assert "--json" in output
