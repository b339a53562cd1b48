"""A planned change of a boot directory, made: each file complete and read back before it has its name.

FAT has no journal. A file gets a temporary name, is synced, read again and compared by hash, and only then renamed;
its directory is synced before the next step. Made twice, or after an interruption, the second time does what is left.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from oci2boot.errors import DigestError, TargetError
from oci2boot.sysroot.bootdir import TEMPORARY
from oci2boot.sysroot.bootdir_steps import BootPlan, Remove, RemoveDirectory, Rename, Source, Step, Write, parents
from oci2boot.system.files import plain_errors, sync_directory, syncfs

_CHUNK: Final = 1 << 20


def apply_boot(plan: BootPlan, esp: Path) -> None:
    """Make the steps of a plan for this directory; `TargetError` where the medium refuses, with nothing half done."""
    with plain_errors(TargetError, f"change the boot directory {esp}"):
        top = esp.resolve(strict=True)
        for step in plan.steps:
            _apply(step, top)
        if plan.steps:
            syncfs(top)


def _apply(step: Step, top: Path) -> None:
    path = top / step.path
    match step:
        case Write():
            _write(step, top)
        case Rename():
            to = top / step.to
            if os.path.lexists(path):
                if os.path.lexists(to) and not path.samefile(to):
                    raise TargetError(f"{to} is there already")
                path.rename(to)
                sync_directory(path.parent)
            elif not os.path.lexists(to):
                raise TargetError(f"{path} is gone", hint="the boot directory was changed meanwhile; try again")
        case Remove():
            with suppress(FileNotFoundError):
                path.unlink()
                sync_directory(path.parent)
        case RemoveDirectory():
            try:
                path.rmdir()
                sync_directory(path.parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise


def _write(step: Write, top: Path) -> None:
    path = top / step.path
    for parent in parents(step.path):
        folder = top / parent
        if folder.is_symlink():
            raise TargetError(f"{folder} is a symbolic link, which firmware does not know")
        if not folder.is_dir():
            folder.mkdir()
            sync_directory(folder.parent)
    if path.is_symlink():
        raise TargetError(f"{path} is a symbolic link, which firmware does not know")
    if path.is_file() and path.stat().st_size == step.size and _hash(path) == step.sha256:
        return
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "wb") as file:
            for piece in _pieces(step.source):
                file.write(piece)
            file.flush()
            os.fsync(fd)
            # What is read back must come from the medium.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if _hash(temporary) != step.sha256:
            raise DigestError(
                f"{path} does not read back as it was written", hint="the medium, or what was copied, is damaged"
            )
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def _pieces(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
