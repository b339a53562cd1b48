"""One byte changed: of some bytes, of a file, and of a file for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flipped(data: bytes, at: int, mask: int = 1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= mask
    return bytes(changed)


def flip(path: Path, at: int, mask: int = 1) -> int:
    """Change a byte of a file, counted from its end where `at` is negative, and return what it was."""
    with path.open("r+b") as file:
        where = file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        (old,) = file.read(1)
        file.seek(where)
        file.write(bytes([old ^ mask]))
    return old


@contextmanager
def damaged(path: Path, at: int, mask: int = 1) -> Iterator[None]:
    """Change a byte of a file for a while."""
    old = flip(path, at, mask)
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([old]))
