"""A tar whose members are read where they lie: nothing is extracted."""

import io
import os
import posixpath
import stat
from pathlib import Path
from typing import Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import FormatError, LimitError, SourceError
from oci2boot.formats.tar import HARD_LINK, read_tar
from oci2boot.oci.blob import RawStream

MAX_MEMBERS: Final = 100_000
"""Files in an archive."""
MAX_LINKS: Final = 8
"""Followed from one name."""


class Span:
    """A part of an open file, by its own file descriptor and position."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._at = start
        self._end = start + size

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, min(size, self._end - self._at), self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Members:
    """The regular files of an archive, by name; links of both kinds lead to others of them."""

    def __init__(self, path: Path, what: str) -> None:
        self._what = what
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{what} cannot be opened: {error.strerror}") from error
        try:
            self._members = self._list()
        except BaseException:
            self.close()
            raise

    def _list(self) -> dict[bytes, "_Place | bytes | _Link"]:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise SourceError(f"{self._what} is not a file", hint="write oci: for a directory")
        if os.pread(self._fd, 4, 0)[:2] in (b"\x1f\x8b", b"\x28\xb5"):
            raise SourceError(f"{self._what} is compressed", hint="unpack it with gunzip or unzstd first")
        members: dict[bytes, _Place | bytes | _Link] = {}
        places = _Places(self._fd)
        try:
            for entry in read_tar(places):
                if entry.kind not in (stat.S_IFREG, stat.S_IFLNK, HARD_LINK):
                    continue
                if entry.path in members:
                    raise FormatError(f"two members have the name {entry.path!r}")
                if len(members) == MAX_MEMBERS:
                    raise LimitError(f"more than {MAX_MEMBERS} members")
                if entry.kind == stat.S_IFREG:
                    members[entry.path] = entry.content if isinstance(entry.content, bytes) else places.last
                elif entry.kind == HARD_LINK:
                    members[entry.path] = _Link(entry.linkname)
                else:
                    members[entry.path] = _Link(
                        posixpath.normpath(posixpath.dirname(entry.path) + b"/" + entry.linkname)
                    )
        except (FormatError, LimitError) as error:
            raise type(error)(f"{self._what} is not a proper tar: {error.message}", hint=error.hint) from error
        return members

    def open(self, name: bytes) -> tuple[RawStream, int] | None:
        """Open one file and tell its size in bytes; None where nothing is."""
        for _ in range(MAX_LINKS):
            match self._members.get(name):
                case None:
                    return None
                case _Link() as link:
                    name = link.lstrip(b"/")
                case bytes() as content:
                    return io.BytesIO(content), len(content)
                case start, size:
                    return Span(os.dup(self._fd), start, size), size
        raise FormatError(f"{self._what} has links that lead nowhere: {name!r}")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Link(bytes):
    """The name of another member."""


_Place = tuple[int, int]
"""Offset and size of a member's content, in bytes."""


class _Places:
    """A `formats.tar` source that notes where bodies lie, and reads none of them."""

    _UNNAMED: Final = VerityDigest("sha256", bytes(32))

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._at = 0
        self.last: _Place = (0, 0)

    def take(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self._at)
        self._at += len(data)
        return data

    def body(self, size: int) -> External:
        if size > self._size - self._at:
            raise FormatError("it is cut short within a member")
        self.last = (self._at, size)
        self._at += size
        return External(self._UNNAMED, size)
