"""What is read from files has an end, and what is longer is refused, not cut."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import pytest

from oci2boot.errors import LimitError, SourceError, TargetError
from oci2boot.system.files import plain_errors, read_all, read_limited


class Dripping:
    """Gives less than it is asked for, as a pipe and a decompressor do; `asked` is what it was asked for."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        self.asked: list[int] = []

    def read(self, size: int, /) -> bytes:
        self.asked.append(size)
        piece = self.pieces.pop(0) if self.pieces else b""
        assert len(piece) <= size
        return piece


def test_all_is_read_however_little_comes_at_a_time() -> None:
    assert read_all(Dripping([b"ab", b"c", b"defg"]), 7, "it") == b"abcdefg"
    assert read_all(Dripping([b"ab", b"c"]), 100, "it", size=3) == b"abc"
    assert read_all(io.BytesIO(b""), 0, "it") == b""


@pytest.mark.parametrize("size", [0, 3, 7])
def test_what_is_longer_is_refused(size: int) -> None:
    with pytest.raises(LimitError, match="the key has more than 7 bytes"):
        read_all(io.BytesIO(b"abcdefgh"), 7, "the key", size=size)
    with pytest.raises(LimitError, match="the key has more than 7 bytes"):
        read_all(Dripping([b"a"] * 100), 7, "the key", size=size)


def test_what_says_that_it_is_longer_is_not_read() -> None:
    source = Dripping([])
    with pytest.raises(LimitError, match="the key has 8 bytes, at most 7 are read"):
        read_all(source, 7, "the key", size=8)
    assert source.asked == []


def test_memory_is_asked_for_by_what_is_there_and_not_by_the_limit() -> None:
    source = Dripping([b"abc"])
    assert read_all(source, 1 << 40, "it", size=3) == b"abc"
    assert max(source.asked) <= 1 << 20


def test_a_file_is_read_to_its_limit_and_not_beyond(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10)
    assert read_limited(path, 2560) == path.read_bytes()
    with pytest.raises(LimitError, match=f"{path} has 2560 bytes, at most 2559 are read"):
        read_limited(path, 2559)


def test_a_file_that_tells_no_size_is_read_too(tmp_path: Path) -> None:
    """proc(5), and a pipe in the place of a file, as the shell's <(…) is."""
    assert read_limited(Path("/proc/self/status"), 1 << 20).startswith(b"Name:")
    with pytest.raises(LimitError, match="more than 10 bytes"):
        read_limited(Path("/proc/self/status"), 10)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_bytes, args=(b"passphrase" * 20_000,))
    writer.start()
    assert read_limited(pipe, 1 << 20) == b"passphrase" * 20_000
    writer.join()


def test_what_cannot_be_read_is_an_error_of_the_kind_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*: no such file"):
        read_limited(tmp_path / "none", 10)
    with pytest.raises(TargetError, match=r"cannot read .*: Is a directory"):
        read_limited(tmp_path, 10, TargetError)


def test_an_error_about_a_descriptor_is_a_sentence_too(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(TargetError, match="cannot read it: "), plain_errors(TargetError, "read it"), os.fdopen(fd):
            pass
    finally:
        os.close(fd)
