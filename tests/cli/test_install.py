"""`oci2boot install`: what has to be said, and who is asked before a disk is overwritten."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from oci2boot.store.repository import Repository
from tests.cli.conftest import Run
from tests.store.stored import SKELETON, layer, store_image
from tests.tarballs import file
from tests.witness import program


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "repo"
    with Repository.ensure(path) as repository:
        store_image(repository, "demo", [layer(SKELETON, file(b"usr/bin/tool", b"tool" * 3000))])
    return path


def a_block_device() -> str:
    listed = subprocess.run(
        [program("lsblk"), "--list", "-n", "-o", "PATH"], check=True, capture_output=True, text=True
    )
    return listed.stdout.split()[0]


@pytest.mark.parametrize("words", [(), ("--wipe",), ("--json", "--wipe")])
def test_a_disk_is_never_overwritten_unasked(run: Run, repo: Path, words: tuple[str, ...]) -> None:
    """P.8: without a terminal, and without --yes."""
    status, output, errors = run("install", "demo", "--repo", repo, "--target", a_block_device(), *words)
    assert status == 1
    assert "nobody is here to ask" in errors + output
    assert "--yes" in errors + output


def test_what_a_machine_demands_is_not_for_a_new_disk(run: Run, repo: Path, tmp_path: Path) -> None:
    """B.11"""
    for words in (("--target", tmp_path / "disk.raw"), ("--esp", tmp_path)):
        status, _, errors = run("install", "demo", "--repo", repo, *words, "--allow-unsealed")
        assert (status, "--allow-unsealed is for a machine that has an image" in " ".join(errors.split())) == (1, True)


ASK = """
import sys
from pathlib import Path
from oci2boot.cli.install import _confirm
from oci2boot.errors import Error
from oci2boot.workflows.requests import InstallRequest
try:
    _confirm(InstallRequest(repo=Path(sys.argv[1]), target=Path(sys.argv[2]), nvram=False), as_json=False)
    print("CONFIRMED")
except Error as error:
    print("STOPPED", error.message)
"""


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("{target}", "CONFIRMED"), ("yes", "STOPPED that is not"), ("/dev/sdb", "STOPPED that is not")],
)
def test_on_a_terminal_the_name_of_the_disk_is_typed(repo: Path, tmp_path: Path, typed: str, answer: str) -> None:
    """P.8: after the plan has been shown."""
    target = tmp_path / "disk.raw"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", ASK, str(repo), str(target)])
    said, asked = b"", False
    try:
        while piece := os.read(terminal, 4096):
            said += piece
            if not asked and b"Type its name to go on" in said:
                asked = True
                os.write(terminal, typed.format(target=target).encode() + b"\n")
    except OSError:
        pass  # the terminal's other end is closed
    os.waitpid(child, 0)
    text = said.decode()
    assert "PARTITION" in text.partition("Type its name")[0]
    assert answer in text
    assert not target.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--target", "x.raw", "--sector-size", "520"),
        ("--target", "x.raw", "--format", "iso"),
        ("--target", "x.qcow2", "--sector-size", "4096"),
        ("--target", "x.raw", "--hostname", "a b"),
        ("--target", "x.raw", "--credential", "novalue"),
        ("--target", "x.raw", "--ssh-key", "/nonexistent"),
        ("--target", "x.raw", "--luks-passphrase-file", "/nonexistent"),
        ("--target", "x.raw", "--luks-passphrase-file", "/dev/null"),
        ("--target", "."),
        ("--target", ".", "--esp", ".", "--size", "10G"),
        ("--target", "/dev/null"),
        ("--target", "/dev/no-such-disk", "--yes"),
        ("--target", "x.raw", "--luks-tpm2"),
        ("--target", "x.raw", "--luks-pbkdf-memory", "64M"),
    ],
    ids=" ".join,
)
def test_a_request_that_makes_no_sense_is_refused(
    run: Run, repo: Path, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output, errors = run("install", "demo", "--repo", repo, *words)
    assert status != 0
    assert "Traceback" not in output + errors
    assert not list(tmp_path.glob("x.*"))


def test_the_plan_says_what_would_be_written(run: Run, repo: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.qcow2"
    secret = tmp_path / "secret"
    secret.write_text("sesame\n")
    words = ("install", "demo", "--repo", repo, "--target", target, "--dry-run", "--luks-passphrase-file", secret)
    status, output, errors = run(*words)
    assert status == 0
    assert "by LUKS2" in output
    assert "qcow2" in output
    assert "not written" in output
    assert "no systemd-cryptsetup" in errors
    assert "no cryptsetup: its encrypted root partition will not grow" in errors
    assert "sesame" not in output + errors
    status, output, _ = run(*words, "--json")
    assert '"format": "qcow2"' in output
    assert not target.exists()
