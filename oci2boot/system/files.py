"""Files that are there whole or not at all."""

import ctypes
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Protocol

from oci2boot.errors import Error, LimitError, SourceError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # <linux/fs.h>
_FICLONE: Final = 0x40049409
_PIECE: Final = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}\.tmp", re.DOTALL)


class Readable(Protocol):
    """A file, or what is read like one: a call may give less than it is asked for, and gives nothing at the end."""

    def read(self, size: int, /) -> bytes: ...


def read_all(source: Readable, limit: int, what: object, *, size: int = 0) -> bytes:
    """Return everything that is left of `source`; `LimitError` where that is more than `limit` bytes.

    `size` is what it is said to be: so much memory is asked for, and not as much as the limit allows.
    """
    if size > limit:
        raise LimitError(f"{what} has {size} bytes, at most {limit} are read")
    pieces, left, wanted = [], limit + 1, size + 1 if size else _PIECE
    while left and (piece := source.read(min(wanted, left))):
        pieces.append(piece)
        left -= len(piece)
        wanted = _PIECE
    if not left:
        raise LimitError(f"{what} has more than {limit} bytes")
    return b"".join(pieces)


def read_limited(path: Path, limit: int, kind: type[Error] = SourceError) -> bytes:
    """Return the content of a file; `LimitError` where it is longer, an error of `kind` where it cannot be read."""
    with plain_errors(kind, f"read {path}"), path.open("rb", buffering=0) as file:
        return read_all(file, limit, path, size=os.fstat(file.fileno()).st_size)


def syncfs(path: Path) -> None:
    """Write everything of the file system that holds `path` to its device. syncfs(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs failed", str(path))
    finally:
        os.close(fd)


def clone(source: int, target: int) -> bool:
    """Let an empty file share the blocks of another; False where the file system cannot. ioctl_ficlone(2)."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    return True


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.tmp")


def is_temporary(name: str) -> bool:
    """Tell whether this is such a name: then the command that made it was stopped, or still runs."""
    return _TEMPORARY.fullmatch(name) is not None


def make_directories(path: Path) -> None:
    """Make a folder and those above it, so that they are there after a power cut too."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from error
    for folder in reversed(made):
        sync_directory(folder.parent)


@contextmanager
def atomic_file(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Give a file to write; at the end it is synced and takes the name `path`, after an error nothing is left."""
    temporary = temporary_name(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def exchange(a: Path, b: Path) -> None:
    """Swap two names of one file system at once. renameat2(2)."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(a))


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    with atomic_file(path, mode) as file:
        file.write(data)


def replace_symlink(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target`, at once, whatever it was."""
    temporary = temporary_name(path)
    temporary.symlink_to(target)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


@contextmanager
def half_written(what: object) -> Iterator[None]:
    """If the program is stopped within, say that it leaves `what` half-written; elsewhere nothing is."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"{what} is half-written")
        raise


_MEANINGS = {
    errno.ENOSPC: ("no space left", "free some space, or choose another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another place"),
    errno.EROFS: ("the file system is read-only", None),
    errno.EACCES: ("permission denied", None),
    errno.EPERM: ("not permitted", None),
    errno.ENOENT: ("no such file or directory", None),
    errno.ENOTDIR: ("not a directory", None),
    errno.EIO: ("input/output error: the medium is failing, or its content was tampered with", None),
}


@contextmanager
def plain_errors(kind: type[Error], doing: str) -> Iterator[None]:
    """Turn an `OSError` within into one sentence of the given kind: `cannot <doing>: why`."""
    try:
        yield
    except OSError as error:
        why, hint = _MEANINGS.get(error.errno or 0, (error.strerror or str(error), None))
        # A file that was opened by its descriptor has that number for a name.
        named = isinstance(error.filename, str | bytes) and error.filename
        where = f" ({os.fsdecode(named)})" if named else ""
        raise kind(f"cannot {doing}: {why}{where}", hint=hint) from error
