"""Where the blocks of a file system go: a file that is one hole, or a device with something old on it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from oci2boot.system.block import zero_out

Encrypt = Callable[[int, bytes | bytearray], bytes]
"""(offset in bytes, whole blocks) to as many bytes."""

_CHUNK: Final = 1 << 20


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


@dataclass(frozen=True, slots=True)
class Volume:
    """A range of a disk from byte `start` on. It may be written from several threads."""

    fd: int
    start: int
    blank: bool
    """What is not written reads as zeros."""
    encrypt: Encrypt | None = None

    @property
    def leaves_zeros(self) -> bool:
        """Say whether zeros can be left out; encrypted, they are not zeros on the disk."""
        return self.blank and self.encrypt is None

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Write whole blocks at a block's place."""
        pwrite_all(self.fd, self.encrypt(offset, data) if self.encrypt else data, self.start + offset)

    def clear(self, offset: int, size: int) -> None:
        """Make whole blocks read as zeros, where nothing is encrypted."""
        if size and not self.blank:
            zero_out(self.fd, self.start + offset, size)

    def copy(self, source: int, offset: int, size: int) -> None:
        """Write what the file descriptor `source` has at the same place."""
        for at in range(offset, offset + size, _CHUNK):
            data = os.pread(source, min(_CHUNK, offset + size - at), at)
            if self.encrypt or data.count(0) != len(data):
                self.write(at, data)
            else:
                self.clear(at, len(data))
