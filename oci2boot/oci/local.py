"""What a file or directory of this machine is, by its content: the reference that it would be given by hand."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import Error, FormatError, SourceError
from oci2boot.formats.tar import read_tar
from oci2boot.oci.reference import (
    ArchiveReference,
    DirectoryReference,
    DockerArchiveReference,
    DumpfileReference,
    LayoutReference,
    Reference,
    TarReference,
)
from oci2boot.system.files import plain_errors

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
_XZ: Final = b"\xfd7zXZ\0"
_DUMP: Final = b"/ "
"""How a dump file begins: the root comes first."""
_LAYOUT: Final = b"oci-layout"
_DOCKER: Final = b"manifest.json"
_SYSTEM: Final = (b"usr/", b"etc/")
"""What no archive of an image has: the rest of a root file system need not be looked at."""


def recognize(path: Path, name: str | None = None) -> Reference:
    """Return the reference to what is there: a layout or a directory, an archive, a tar or a dump file.

    `name` is what to call it in an error.
    """
    with plain_errors(SourceError, f"read {path}"):
        if path.is_dir():
            return LayoutReference(path) if (path / "oci-layout").is_file() else DirectoryReference(path)
    fd = open_regular(path, str(path))
    try:
        return _file(path, fd, name or str(path))
    finally:
        os.close(fd)


def open_regular(path: Path, what: str) -> int:
    with plain_errors(SourceError, f"open {what}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SourceError(f"{what} is not a file", hint="what a pipe brings is read by the name -")
    return fd


def _file(path: Path, fd: int, name: str) -> Reference:
    head = os.pread(fd, 6, 0)
    if head.startswith((GZIP, ZSTD, _XZ)):
        return TarReference(path)
    if head.startswith(_DUMP):
        return DumpfileReference(path)
    found = set()
    try:
        if not head:
            raise FormatError("it is empty")
        for entry in read_tar(_Heads(fd)):
            if entry.path.startswith(_SYSTEM):
                return TarReference(path)
            found.add(entry.path)
            if _LAYOUT in found:
                return ArchiveReference(path)
    except Error as error:
        raise FormatError(
            f"{name} is neither a tar, nor an archive of an image, nor a dump file: {error.message}",
            hint="an image is a directory of its files, a tar of them, or a layout or archive of it",
        ) from error
    if _DOCKER in found:
        return DockerArchiveReference(path)
    return TarReference(path)


class _Heads:
    """A `formats.tar` source that passes over bodies."""

    _UNNAMED: Final = VerityDigest("sha256", bytes(32))

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def take(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self._at)
        self._at += len(data)
        return data

    def body(self, size: int) -> External:
        self._at += size
        return External(self._UNNAMED, size)


@contextmanager
def standard_input() -> Iterator[Path]:
    """Give a path at which all that standard input brings can be read."""
    if sys.stdin is None or sys.stdin.isatty():
        raise SourceError("standard input is a terminal", hint="pipe a tar or an archive of an image into it")
    with plain_errors(SourceError, "keep standard input"), tempfile.TemporaryFile() as spool:
        while data := sys.stdin.buffer.read(1 << 20):
            spool.write(data)
        spool.flush()
        yield Path(f"/proc/self/fd/{spool.fileno()}")
