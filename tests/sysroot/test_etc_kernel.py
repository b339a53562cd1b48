"""Upper directories of /etc under the kernel's own overlayfs, which root may mount in a namespace of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from oci2boot.digest import External
from oci2boot.errors import DigestError, LimitError, TargetError
from oci2boot.formats.fsverity import measure
from oci2boot.sysroot.etc_upper import write_upper
from oci2boot.tree.model import Directory, File, Metadata
from oci2boot.workflows.machine import etc
from oci2boot.workflows.machine.etc import read_upper
from tests.boot.debian import PROJECT
from tests.witness import program

ROUNDS = 150


@pytest.fixture(autouse=True)
def root() -> None:
    assert os.geteuid() == 0, "only root can write what overlayfs reads: run these tests as root"


def in_namespace(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("unshare"), "--mount", *argv], cwd=PROJECT, check=False, capture_output=True, text=True, timeout=300
    )


def test_the_kernel_shows_what_was_merged() -> None:
    """C.22, P.10: with and without redirected directories and files copied up in part; what is written is read back."""
    done = in_namespace(sys.executable, "-m", "tests.sysroot.overlays", str(ROUNDS))
    assert (done.returncode, done.stdout) == (0, f"{ROUNDS} rounds\n"), done.stderr


def test_an_immutable_file_is_immutable_in_the_next_deployment() -> None:
    script = f"""
    set -e
    mount -t tmpfs etc /mnt; cd /mnt; mkdir base theirs old old/upper old/work new etc; echo x >base/a; echo y >theirs/a
    mount -t overlay -o lowerdir=base,upperdir=old/upper,workdir=old/work etc etc
    chattr +i etc/a
    umount etc
    {sys.executable} -c 'from tests.sysroot.overlays import *
plan = plan_etc(*(read(Path("/mnt", name)) for name in ("base", "theirs", "old/upper")))
write_upper(plan.upper, Path("/mnt/new/upper"), nowhere)'
    mkdir new/work
    mount -t overlay -o lowerdir=theirs,upperdir=new/upper,workdir=new/work etc etc
    cat etc/a; lsattr etc/a; ! rm -f etc/a 2>&1
    """
    done = in_namespace("env", f"PYTHONPATH={PROJECT}", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    content, attributes, refused = done.stdout.splitlines()
    assert (content, "i" in attributes.split()[0], "not permitted" in refused) == ("x", True, True)


def test_an_unfinished_upper_directory_is_replaced(tmp_path: Path) -> None:
    content = os.urandom(5000)
    (tmp_path / "content").write_bytes(content)
    tree = Directory(
        Metadata(mode=0o755), {b"a": File(Metadata(mode=0o640, uid=1, gid=2), External(measure(content), len(content)))}
    )
    upper = tmp_path / "etc/upper"
    (upper / "old").mkdir(parents=True)
    (tmp_path / "etc/.upper.new/half").mkdir(parents=True)
    with pytest.raises(TargetError, match="no such file"):
        write_upper(tree, upper, lambda _: tmp_path / "lost")
    (tmp_path / "other").write_bytes(content[1:])
    with pytest.raises(DigestError, match="changed while"):
        write_upper(tree, upper, lambda _: tmp_path / "other")
    assert (upper / "old").is_dir()
    write_upper(tree, upper, lambda _: tmp_path / "content")
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["upper"]
    found = (upper / "a").stat()
    assert ((upper / "a").read_bytes(), found.st_mode & 0o7777, found.st_uid, found.st_gid) == (content, 0o640, 1, 2)


def test_sockets_are_left_out_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "d/socket"))
        (tmp_path / "d/file").write_text("x")
        upper = read_upper(tmp_path, "sha256")
    assert upper.notes == ("/etc/d/socket is left out, being a socket",)
    d = upper.tree.entries[b"d"]
    assert isinstance(d, Directory)
    assert set(d.entries) == {b"file"}


def test_a_huge_upper_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etc, "MAX_BYTES", 1 << 20)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitError, match="more than 1 MiB"):
        read_upper(tmp_path, "sha256")
    (tmp_path / "huge").unlink()
    monkeypatch.setattr(etc, "MAX_FILES", 10)
    for number in range(11):
        (tmp_path / str(number)).touch()
    with pytest.raises(LimitError, match="more than 10 files"):
        read_upper(tmp_path, "sha256")


def test_a_machine_without_state_says_why(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        read_upper(tmp_path / "upper", "sha256")
    assert "transient" in (caught.value.hint or "")
