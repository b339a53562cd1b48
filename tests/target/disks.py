"""Disks for tests: written as an ordinary user, and looked at with e2fsprogs, dosfstools, mtools and fdisk."""

import codecs
import os
import pickle
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oci2boot.digest import Hash
from oci2boot.formats.fsverity import Hasher
from oci2boot.target.disk import write_disk
from oci2boot.target.entries import EspFile, FileSource, RootEntry, Source
from oci2boot.target.plan import DiskOptions, DiskPlan, plan_disk
from oci2boot.tree.model import NO_XATTRS, Metadata
from tests.witness import program

SEED = b"a seed for tests"
EPOCH = 1_700_000_000
NOBODY = 65534
MIB = 1 << 20


@contextmanager
def working_directory() -> Iterator[Path]:
    """Give a directory that the ordinary user of `ordinarily` may write to."""
    path = Path(tempfile.mkdtemp(prefix="oci2boot-test-"))
    try:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        yield path
    finally:
        shutil.rmtree(path)


def ordinarily(function: Callable[[], Any]) -> Any:
    """Run the function as an ordinary user, in a child that drops root; raise what it raises."""
    codecs.lookup("utf-16-le")  # names in FAT and GPT: Python itself may lie where the child cannot read
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: tuple[Any, BaseException | None] = (None, None)
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = (function(), None)
        except BaseException as error:
            error.__cause__ = error.__context__ = None
            answer = (None, error)
        finally:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(child, 0)
    result, failure = pickle.loads(raw)
    if failure:
        raise failure
    return result


def write(plan: DiskPlan, target: Path, *, overwrite: bool = False) -> None:
    ordinarily(lambda: write_disk(plan, target, overwrite=overwrite))


def directory(path: bytes, mode: int = 0o755, xattrs: Mapping[bytes, bytes] = NO_XATTRS) -> RootEntry:
    return RootEntry(path, stat.S_IFDIR, Metadata(mode, xattrs=xattrs))


def regular(path: bytes, source: Source = b"", meta: Metadata | None = None) -> RootEntry:
    return RootEntry(path, stat.S_IFREG, meta or Metadata(0o644), source)


def verified(path: bytes, source: Source, algorithm: Hash = "sha256") -> RootEntry:
    """Return an fs-verity file; that its digest is right is proved elsewhere, in tests/formats/test_fsverity.py."""
    hasher = Hasher(algorithm)
    if isinstance(source, FileSource):
        with source.path.open("rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    else:
        hasher.update(source)
    return RootEntry(path, stat.S_IFREG, Metadata(0o444), source, hasher.digest())


def plan_of(root: list[RootEntry], esp: list[EspFile] | None = None, **options: Any) -> DiskPlan:
    return plan_disk(root, esp or [], DiskOptions(**{"seed": SEED, "epoch": EPOCH, **options}))


def said(*argv: str | Path, status: int = 0) -> str:
    """Return what the program prints; it has to end with the status."""
    done = subprocess.run(
        [program(str(argv[0])), *argv[1:]], capture_output=True, check=False, env={**os.environ, "TZ": "UTC"}
    )
    output = (done.stdout + done.stderr).decode(errors="surrogateescape")
    assert done.returncode == status, output
    return output


class Root:
    """The ext4 file system of a disk as debugfs shows it."""

    def __init__(self, disk: Path, plan: DiskPlan) -> None:
        self.device = f"{disk}?offset={plan.root.start}"

    def check(self) -> None:
        said("e2fsck", "-fn", self.device)

    def debugfs(self, *requests: str) -> str:
        lines = "\n".join(requests).encode(errors="surrogateescape") + b"\n"
        done = subprocess.run(
            [program("debugfs"), "-f", "/dev/stdin", self.device], input=lines, capture_output=True, check=True
        )
        return done.stdout.decode(errors="surrogateescape")

    def stat(self, path: str) -> str:
        return self.debugfs(f'stat "{path}"')

    def cat(self, path: str) -> bytes:
        return subprocess.run(
            [program("debugfs"), "-R", f'cat "{path}"', self.device], capture_output=True, check=True
        ).stdout


def content(size: int) -> bytes:
    return (bytes(range(1, 252)) * (size // 251 + 1))[:size]
