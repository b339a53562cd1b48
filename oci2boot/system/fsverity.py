"""fs-verity in the kernel. Linux, Documentation/filesystems/fsverity.rst, "User API"."""

import errno
import fcntl
import os
import struct
from typing import Final

_ENABLE: Final = 0x40806685
"""FS_IOC_ENABLE_VERITY, _IOW('f', 133, struct fsverity_enable_arg)"""
_MEASURE: Final = 0xC0046686
"""FS_IOC_MEASURE_VERITY, _IOWR('f', 134, struct fsverity_digest)"""
_ALGORITHM_NUMBER: Final = {"sha256": 1, "sha512": 2}
_UNSUPPORTED: Final = {errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def enable(fd: int, algorithm: str) -> bool:
    """Make the file immutable and verified; False where the file system or the kernel cannot.

    `fd` is read-only, and nobody may have the file open for writing.
    """
    argument = struct.pack("<IIIIQIIQ11Q", 1, _ALGORITHM_NUMBER[algorithm], 4096, 0, 0, 0, 0, 0, *([0] * 11))
    try:
        fcntl.ioctl(fd, _ENABLE, argument)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return True
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def measured(fd: int) -> bytes | None:
    """Return the digest that the kernel holds the file to; None where it holds it to none."""
    buffer = bytearray(struct.pack("<HH64x", 0, 64))
    try:
        fcntl.ioctl(fd, _MEASURE, buffer)
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in _UNSUPPORTED:
            return None
        raise
    (size,) = struct.unpack_from("<H", buffer, 2)
    return bytes(buffer[4 : 4 + size])


def is_enabled(path: "os.PathLike[str]") -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return measured(fd) is not None
    finally:
        os.close(fd)
