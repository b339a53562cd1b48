"""Mounts, seen and changed by this process alone. mount(2), unshare(2), proc_pid_mountinfo(5)."""

import ctypes
import os
from pathlib import Path
from typing import Final

from oci2boot.errors import TargetError

_CLONE_NEWNS: Final = 0x00020000
_MS_REMOUNT: Final = 0x20
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 1 << 19
_KEPT: Final = {
    os.ST_NOSUID: 0x2, os.ST_NODEV: 0x4, os.ST_NOEXEC: 0x8, os.ST_NOATIME: 0x400, os.ST_NODIRATIME: 0x800,
    os.ST_RELATIME: 0x200000,
}  # fmt: skip
"""Of a mount, as statvfs(3) shows them and mount(2) takes them: a remount drops what it is not told."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def make_writable(path: Path) -> None:
    """Let this process, and nobody else, write to the read-only mount at `path`. Needs root."""
    flags = os.statvfs(path).f_flag
    try:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        # Still told of mounts elsewhere, or an automount of the ESP would never arrive here.
        _mount(Path("/"), _MS_REC | _MS_SLAVE)
        _mount(path, _MS_REMOUNT | _MS_BIND | sum(bit for shown, bit in _KEPT.items() if flags & shown))
    except OSError as error:
        raise TargetError(
            f"{path} is read-only, and cannot be made writable for this command: {error.strerror}",
            hint=None if os.geteuid() == 0 else "run it as root",
        ) from error
    if is_read_only(path):
        raise TargetError(f"the file system of {path} is read-only", hint=f"mount -o remount,rw {path}")


def _mount(path: Path, flags: int) -> None:
    _check(_libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(flags), None), "mount")


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
