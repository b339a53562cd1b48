"""What setup-root reads and writes before it mounts anything, under each shell that an initramfs may have."""

import shutil
import subprocess
from pathlib import Path

import pytest

from oci2boot.digest import External, Hash, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.formats import cmdline
from oci2boot.rootfs.composefs import build_rootfs
from oci2boot.tree.model import Directory, File, Metadata
from tests.formats.cmdlines import REFUSED
from tests.initramfs.scripts import SCRIPTS, SETUP_ROOT, SHELLS, shell, witness_template
from tests.witness import program

A, B = "ab" * 32, "0f" * 64


def promise(name: str, line: str, tmp_path: Path) -> tuple[int, str, str]:
    (tmp_path / "cmdline").write_text(line + "\n")
    argv = [*shell(name), str(SETUP_ROOT), "promise", str(tmp_path / "cmdline")]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"rw composefs={A} quiet", f"sha256:{A}"),
        (f"composefs={B}", f"sha512:{B}"),
        (f"composefs=?{A}", f"sha256:{A} insecure"),
        (f"composefs.digest=v1-sha256-12:{A}", f"sha256:{A}"),
        (f"composefs.digest=?v2-sha512-12:{B}", f"sha512:{B} insecure"),
        (f'dyndbg="file composefs={B} +p" a=* composefs={A}', f"sha256:{A}"),
        (f'"a b" composefs={A} "c', f"sha256:{A}"),
        (f"\tcomposefs={A}\t", f"sha256:{A}"),
        (f"rd.composefs=1 composefsx composefs={A}", f"sha256:{A}"),
    ],
)
def test_one_argument_is_the_promise(name: str, line: str, said: str, tmp_path: Path) -> None:
    """C.15"""
    assert promise(name, line, tmp_path) == (0, said, "")


C = "cd" * 32
SET = f"{A}\n{B}\n"


def promise_of_set(name: str, signed: str, line: str, folder: Path) -> tuple[int, str, str]:
    """Have setup-root find `signed` in the initramfs."""
    (folder / "rootfs.digest").write_text(signed)
    text = SETUP_ROOT.read_text()
    assert "/usr/lib/composefs/rootfs.digest" in text
    (folder / "setup-root").write_text(text.replace("/usr/lib/composefs/rootfs.digest", str(folder / "rootfs.digest")))
    (folder / "cmdline").write_text(line + "\n")
    argv = [*shell(name), str(folder / "setup-root"), "promise", str(folder / "cmdline")]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("signed", "line", "said"),
    [
        (SET, "rw quiet", f"sha256:{A}\nsha512:{B}"),
        (SET, f"composefs={A} composefs={B}", f"sha256:{A}\nsha512:{B}"),
        (SET, f"composefs={B} quiet composefs={A}", f"sha512:{B}\nsha256:{A}"),
        (SET, f"composefs.digest=v1-sha512-12:{B}", f"sha512:{B}"),
        (SET.rstrip(), f"composefs={B}", f"sha512:{B}"),
        (f"{A}\n", f"composefs={A}", f"sha256:{A}"),
    ],
)
def test_of_a_signed_set_the_command_line_may_name_some(
    name: str, signed: str, line: str, said: str, tmp_path: Path
) -> None:
    """C.15, C.31: bootc 1.17 promises several; the first that exists wins."""
    assert promise_of_set(name, signed, line, tmp_path) == (0, said, "")


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("signed", "line", "said"),
    [
        (SET, f"composefs={C}", "the initramfs promises"),
        (SET, f"composefs={A} composefs={C}", "the initramfs promises"),
        (SET, f"composefs={C} composefs={A}", "the initramfs promises"),
        (SET, f"composefs={A} composefs={A}", "more than once"),
        (SET, f"composefs={A} composefs.digest=v1-sha256-12:{A}", "more than once"),
        (SET, f"composefs=?{A}", "the initramfs promises"),
        (SET, f"composefs={A} composefs=?{B}", "the initramfs promises"),
        (SET, f"composefs={A.upper()}", "malformed"),
        (SET, f"composefs={A[:-1]}", "malformed"),
        (SET, f'composefs={A} "composefs={B}"', "malformed"),
        (f"{A}\n?{B}\n", "rw", "makes verification optional"),
        (f"{A} {B}\n", f"composefs={A}", "malformed"),
        (f"{A}\n\n", f"composefs={A}", "malformed"),
        ("", f"composefs={A}", "names nothing"),
        ("zz\n", f"composefs={A}", "malformed"),
        (f"{A}\n", f"composefs={A} composefs={B}", "the initramfs promises"),
    ],
)
def test_nothing_outside_of_a_signed_set_is_booted(
    name: str, signed: str, line: str, said: str, tmp_path: Path
) -> None:
    """C.31, O.15: an addon, or the host of a virtual machine, appends to the command line."""
    code, out, words = promise_of_set(name, signed, line, tmp_path)
    assert (code, out) == (1, "")
    assert "FATAL" in words
    assert said in words


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rw quiet", "no composefs argument"),
        ("", "no composefs argument"),
        (f'a="b composefs={A}"', "no composefs argument"),
        (f"composefs={A} composefs={A}", "more than one composefs argument"),
        (f"composefs={A} x composefs.digest=v1-sha256-12:{A}", "more than one composefs argument"),
        (f"composefs={A} composefs={B}", "more than one composefs argument"),
        (f"composefs={A} composefs=", "more than one composefs argument"),
        (f"composefs={A} Composefs={A}", "malformed"),
        (f"composefs={A} composefs.other=1", "malformed"),
    ],
)
def test_no_argument_two_and_look_alikes_stop_the_boot(name: str, line: str, said: str, tmp_path: Path) -> None:
    """C.31, C.36: systemd-stub addons and the host of a VM can append to the command line."""
    code, _, words = promise(name, line, tmp_path)
    assert code == 1
    assert said in words


@pytest.mark.parametrize("name", SHELLS)
def test_what_the_builder_refuses_to_write_the_boot_refuses_to_read(name: str, tmp_path: Path) -> None:
    for word in REFUSED:
        with pytest.raises(FormatError):
            cmdline.find_composefs([word])
        assert promise(name, f"rw {word}", tmp_path)[0] == 1, word


def witness(name: str, digest: VerityDigest) -> bytes:
    argv = [*shell(name), str(SETUP_ROOT), "witness", digest.algorithm, digest.hex]
    return subprocess.run(argv, check=True, capture_output=True, env={}).stdout


@pytest.mark.parametrize("digest", [VerityDigest.parse(A), VerityDigest.parse(B)], ids=["sha256", "sha512"])
def test_the_witness_is_an_erofs_image_under_each_shell(digest: VerityDigest, tmp_path: Path) -> None:
    images = {witness(name, digest) for name in SHELLS}
    assert len(images) == 1
    path = tmp_path / "witness.erofs"
    path.write_bytes(images.pop())
    assert path.stat().st_size == 4096
    subprocess.run([program("fsck.erofs"), path], check=True, capture_output=True)


@pytest.mark.parametrize("digest", [VerityDigest.parse(A), VerityDigest.parse(B)], ids=["sha256", "sha512"])
def test_the_witness_is_the_image_that_the_rootfs_writer_writes(digest: VerityDigest) -> None:
    """The writer is held to composefs-rs's bytes by the vectors."""
    tree = Directory(Metadata(mode=0o755), {b"image": File(Metadata(mode=0o444), External(digest, 1))})
    assert witness("dash", digest) == build_rootfs(tree, 2, digest.algorithm).image


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_template_of_the_witness_is_the_writers(algorithm: Hash) -> None:
    assert (SCRIPTS / f"witness-{algorithm}").read_text() == witness_template(algorithm)


@pytest.mark.parametrize("name", SHELLS)
def test_without_a_template_nothing_is_checked_and_the_boot_stops(name: str, tmp_path: Path) -> None:
    argv = [*shell(name), str(shutil.copy(SETUP_ROOT, tmp_path)), "witness", "sha256", A]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    assert (done.returncode, done.stdout) == (1, "")
    assert "FATAL: the initramfs has no witness-sha256" in done.stderr


def test_shellcheck_finds_nothing() -> None:
    scripts = [path for path in SCRIPTS.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!")]
    assert {"init", "setup-root", "setup-overlays", "grow"} <= {path.name for path in scripts}
    subprocess.run([program("shellcheck"), *scripts], check=True)
