"""What keeps a disk image from being written: one sentence, and nothing is left."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from oci2boot.errors import DigestError, Error, TargetError
from oci2boot.target.disk import write_disk
from oci2boot.target.entries import EspFile, FileSource, RootEntry
from oci2boot.target.plan import DiskPlan
from tests.target.disks import (
    MIB,
    content,
    ordinarily,
    plan_of,
    regular,
    verified,
    write,
)


def test_an_existing_target_is_refused_and_kept(place: Path) -> None:
    target = place / "existing.raw"
    target.write_bytes(b"mine")
    with pytest.raises(TargetError, match="exists already"):
        write(plan_of([]), target)
    assert target.read_bytes() == b"mine"
    target.chmod(0o666)
    write(plan_of([]), target, overwrite=True)
    assert target.stat().st_size > MIB
    target.unlink()


def leaves_nothing(place: Path, kind: type[Error], match: str, plan: DiskPlan, target: Path | None = None) -> None:
    before = sorted(place.iterdir())
    with pytest.raises(kind, match=match):
        write(plan, target or place / "never.raw")
    assert sorted(place.iterdir()) == before


def test_an_object_with_another_content_is_refused(place: Path) -> None:
    honest = verified(b"/object", content(5000))
    broken = RootEntry(honest.path, honest.kind, honest.meta, content(5000)[::-1], honest.verity)
    leaves_nothing(place, DigestError, "should measure", plan_of([broken]))


@pytest.mark.parametrize("promised", [4999, 5001])
def test_a_source_of_another_size_is_refused(place: Path, promised: int) -> None:
    source = place / "source"
    source.write_bytes(content(5000))
    leaves_nothing(place, TargetError, "source", plan_of([regular(b"/a", FileSource(source, promised))]))
    source.unlink()


def test_a_missing_source_is_one_sentence(place: Path) -> None:
    gone = FileSource(place / "gone", 5)
    leaves_nothing(place, TargetError, "no such file", plan_of([regular(b"/a", gone)]))
    leaves_nothing(place, Error, "gone", plan_of([], [EspFile("a", gone)]))


def test_a_directory_that_cannot_be_written_is_one_sentence(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o555)
    leaves_nothing(place, TargetError, "permission denied", plan_of([]), closed / "disk.raw")
    leaves_nothing(place, TargetError, "no such file or directory", plan_of([]), place / "not" / "disk.raw")
    closed.rmdir()


def test_no_room_for_the_file_is_one_sentence_and_leaves_nothing(place: Path) -> None:
    plan = plan_of([regular(b"/a", content(5 * MIB))])
    before = sorted(place.iterdir())

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * MIB, 64 * MIB))
        write_disk(plan, place / "never.raw")

    with pytest.raises(TargetError, match=os.strerror(errno.EFBIG)):
        ordinarily(limited)
    assert sorted(place.iterdir()) == before


def test_too_little_free_space_is_said_before_the_first_byte(place: Path) -> None:
    source = place / "endless"
    with source.open("wb") as file:
        file.truncate(1 << 39)
    leaves_nothing(
        place, TargetError, r"\d+ bytes are needed, \d+ are free", plan_of([regular(b"/a", FileSource.of(source))])
    )
    source.unlink()
