"""What a path is, by its content: archives by skopeo, tars by GNU tar, dump files by cfsctl."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import Error, SourceError
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import open_source
from oci2boot.workflows.sources import is_source, parse_source
from tests.witness import program


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the directory that is the current one, with a root file system, its tars, and archives of its image."""
    root = tmp_path / "rootfs"
    for name in ("usr/bin", "etc", "boot", "sysroot", "run"):
        (root / name).mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"x" * 5000)
    os.link(root / "usr/bin/tool", root / "usr/bin/link")
    monkeypatch.chdir(tmp_path)
    run("tar", "--numeric-owner", "--sort=name", "-C", "rootfs", "-cf", "rootfs.tar", ".")
    run("gzip", "-k", "rootfs.tar")
    run("zstd", "-q", "-k", "rootfs.tar")
    return tmp_path


def run(*words: str) -> bytes:
    return subprocess.run([program(words[0]), *words[1:]], check=True, capture_output=True).stdout


def cfsctl_digest(root: str) -> str:
    words = ["--hash", "sha256", "--erofs-version", "1", "compute-id", "--bootable", root]
    return run("cfsctl", *words).decode().strip().rpartition(":")[2]


def test_a_path_is_what_its_content_says(place: Path) -> None:
    """C.28"""
    run("umoci", "init", "--layout", "image")
    run("umoci", "new", "--image", "image:latest")
    run("skopeo", "copy", "--insecure-policy", "oci:image:latest", "oci-archive:oci.tar:latest")
    run("skopeo", "copy", "--insecure-policy", "oci:image:latest", "docker-archive:docker.tar:x:latest")
    (place / "root.dump").write_bytes(run("cfsctl", "create-dumpfile", "rootfs"))
    found = {text: str(parse_source(text)) for text in (path.name for path in place.iterdir())}
    assert found == {
        "rootfs": "dir:rootfs", "rootfs.tar": "tar:rootfs.tar", "rootfs.tar.gz": "tar:rootfs.tar.gz",
        "rootfs.tar.zst": "tar:rootfs.tar.zst", "image": "oci:image", "oci.tar": "oci-archive:oci.tar",
        "docker.tar": "docker-archive:docker.tar", "root.dump": "dumpfile:root.dump",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["./rootfs.tar", "../{}/rootfs.tar", "tar:rootfs.tar"])
def test_a_path_has_many_spellings(text: str, place: Path) -> None:
    text = text.format(place.name)
    assert str(parse_source(text)) == f"tar:{text.removeprefix('tar:').removeprefix('./')}"
    assert is_source("rootfs.tar")
    assert not is_source("demo")


@pytest.mark.usefixtures("place")
def test_what_is_no_path_is_a_name() -> None:
    assert str(parse_source("debian:trixie")) == "docker://docker.io/library/debian:trixie"
    assert str(parse_source("docker://rootfs")) == "docker://docker.io/library/rootfs:latest"
    with pytest.raises(Error, match=r"nothing is at \./missing"):
        parse_source("./missing")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x7fELF" + bytes(2000)])
def test_a_file_that_is_no_source_is_refused(content: bytes, place: Path) -> None:
    (place / "other").write_bytes(content)
    with pytest.raises(Error, match="other is neither a tar, nor an archive of an image, nor a dump file"):
        parse_source("other")
    os.mkfifo(place / "fifo")
    with pytest.raises(SourceError, match="fifo is not a file"):
        parse_source("fifo")


@pytest.mark.parametrize("source", ["rootfs.tar", "tar:rootfs.tar.gz", "./rootfs.tar.zst", "-"])
def test_a_tar_has_the_digest_of_its_files(source: str, place: Path) -> None:
    """C.28: cfsctl has it of the files that GNU tar unpacks."""
    (place / "again").mkdir()
    run("tar", "-C", "again", "-xf", "rootfs.tar")
    done = subprocess.run(
        ["oci2boot", "digest", source], executable=program("oci2boot"), check=True, capture_output=True,
        stdin=(place / "rootfs.tar").open("rb"), text=True,
    )  # fmt: skip
    assert done.stdout.strip() == cfsctl_digest("again")
    assert ("docker://docker.io/library/rootfs.tar:latest would be" in done.stderr) == (source == "rootfs.tar")


def test_what_is_wrong_with_standard_input_is_said_of_it() -> None:
    done = subprocess.run(
        [program("oci2boot"), "digest", "-"], check=False, capture_output=True, stdin=subprocess.DEVNULL, text=True
    )
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: standard input is neither a tar, nor ")
    assert hint.startswith("hint: ")


def test_an_archive_of_an_image_comes_on_standard_input(place: Path) -> None:
    run("umoci", "init", "--layout", "image")
    run("umoci", "new", "--image", "image:latest")
    run("umoci", "raw", "add-layer", "--image", "image:latest", "rootfs.tar")
    run("skopeo", "copy", "--insecure-policy", "oci:image:latest", "oci-archive:oci.tar:latest")
    (place / "again").mkdir()
    run("tar", "-C", "again", "-xf", "rootfs.tar")
    with (place / "oci.tar").open("rb") as file:
        done = subprocess.run([program("oci2boot"), "digest", "-"], check=True, capture_output=True, stdin=file)
    with (place / "oci.tar").open("rb") as file:
        words = [program("oci2boot"), "inspect", "-", "--json"]
        inspected = subprocess.run(words, check=True, capture_output=True, stdin=file)
    assert json.loads(inspected.stdout)["source"] == "-"
    assert done.stdout.decode().strip() == cfsctl_digest("again")


def test_the_image_of_a_tar_has_what_the_specification_asks_for(place: Path) -> None:
    """image-spec, config.md: the diff_id is of the uncompressed tar."""
    plain = run("sha256sum", "rootfs.tar").split()[0].decode()
    for text in ("tar:rootfs.tar", "tar:rootfs.tar.gz", "tar:rootfs.tar.zst"):
        with open_source(Reference.parse(text)) as source:
            image = source.fetch()
            (layer,) = image.layers
            assert layer.diff_id.hex == plain
            assert layer.size == (place / text.removeprefix("tar:")).stat().st_size


def test_a_damaged_tar_is_an_error_of_ours(place: Path) -> None:
    (place / "cut.tar.gz").write_bytes((place / "rootfs.tar.gz").read_bytes()[:-20])
    with pytest.raises(Error, match="cut short"), open_source(Reference.parse("tar:cut.tar.gz")) as source:
        source.fetch()
    (place / "x.tar").write_bytes(b"\xfd7zXZ\0" + bytes(100))
    with pytest.raises(SourceError, match="compressed by xz"), open_source(parse_source("x.tar")) as source:
        source.fetch()


def test_a_terminal_is_not_waited_for() -> None:
    controller, terminal = os.openpty()
    try:
        done = subprocess.run(
            [program("oci2boot"), "digest", "-"],
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(controller)
        os.close(terminal)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: standard input is a terminal")
