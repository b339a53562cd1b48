"""Rules for the times of a directory, by the words of buildah's and BuildKit's manuals."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import FormatError
from oci2boot.tree.model import Directory, File, Metadata, walk
from oci2boot.tree.times import Times

HALF = 500_000_000


def file(mtime: int, nsec: int = 0, content: bytes = b"x") -> File:
    return File(Metadata(mode=0o644, mtime=mtime, mtime_nsec=nsec), content)


def tree(**files: File) -> Directory:
    return Directory(
        Metadata(mode=0o755, mtime=7, mtime_nsec=HALF), {name.encode(): one for name, one in files.items()}
    )


def times(root: Directory) -> dict[str, tuple[int, int]]:
    return {path.decode(): (inode.meta.mtime, inode.meta.mtime_nsec) for path, inode in walk(root)}


# Of 7.5 s, 9.999999999 s, 12.499999999 s, and 1.5 s before 1970.
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("exact", [(7, HALF), (9, 999_999_999), (12, HALF - 1), (-2, HALF)]),
        ("seconds", [(7, 0), (9, 0), (12, 0), (-2, 0)]),
        ("nearest", [(8, 0), (10, 0), (12, 0), (-1, 0)]),
        ("10", [(10, 0)] * 4),
        ("clamp:9", [(7, 0), (9, 0), (9, 0), (-2, 0)]),
        ("0", [(0, 0)] * 4),
    ],
)
def test_each_rule_does_what_its_builder_does(rule: str, expected: list[tuple[int, int]]) -> None:
    """C.26"""
    root = tree(a=file(9, 999_999_999), b=file(12, HALF - 1), c=file(-2, HALF))
    assert list(times(Times.parse(rule).of(root)).values()) == expected
    assert str(Times.parse(rule)) == rule


@pytest.mark.parametrize("text", ["", "now", "-1", "1.5", "clamp", "clamp:", "clamp:-1", "9" * 12, "seconds ", "٣"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not a rule for times"):
        Times.parse(text)


def test_what_the_build_began_with_keeps_its_times() -> None:
    """The new layer has what was added or changed, and the directories above it."""
    linked, kept = file(3), file(3)
    below = tree(kept=kept, changed=file(3), removed=file(3), linked=linked)
    deep = Directory(Metadata(mode=0o755, mtime=3), {b"kept": kept})
    below = replace(below, entries={**below.entries, b"deep": deep, b"old": deep})
    stage = replace(
        below,
        entries={
            b"kept": kept, b"changed": file(3, content=b"y"), b"linked": linked, b"linked-too": linked,
            b"deep": replace(deep, entries={b"kept": kept, b"new": file(4)}), b"old": deep,
        },
    )  # fmt: skip
    found = {path: mtime for path, (mtime, _) in times(Times.parse("10").of(stage, below)).items()}
    assert found == {
        "/": 10, "/kept": 3, "/changed": 10, "/linked": 10, "/linked-too": 10,
        "/deep": 10, "/deep/kept": 3, "/deep/new": 10, "/old": 3, "/old/kept": 3,
    }  # fmt: skip
    clamped = {path: mtime for path, (mtime, _) in times(Times.parse("clamp:2").of(stage, below)).items()}
    assert clamped == {path: 2 if mtime == 10 else 3 for path, mtime in found.items()}


def folder(mtime: int, **entries: File | Directory) -> Directory:
    return Directory(Metadata(mode=0o755, mtime=mtime), {name.encode(): one for name, one in entries.items()})


def test_a_new_layer_has_every_directory_above_what_changed() -> None:
    """Also above a file's other names and above what was removed; what is old and later than the epoch stays."""
    old, linked = file(5), file(5)
    below = folder(20, added=folder(20, x=old), linked=folder(20, x=linked), removed=folder(20, x=old),
                   same=folder(20, x=old), touched=file(20))  # fmt: skip
    stage = folder(20, added=folder(20, x=old, new=file(5)), linked=folder(20, x=linked), other=linked,
                   removed=folder(20), same=folder(20, x=old), touched=file(30))  # fmt: skip
    found = {path: mtime for path, (mtime, _) in times(Times.parse("clamp:10").of(stage, below)).items()}
    assert found == {
        "/": 10, "/added": 10, "/added/new": 5, "/added/x": 5, "/linked": 10, "/linked/x": 5, "/other": 5,
        "/removed": 10, "/same": 20, "/same/x": 5, "/touched": 10,
    }  # fmt: skip


@given(st.text(max_size=20))
def test_any_text_is_a_rule_or_an_error_of_ours(text: str) -> None:
    with suppress(FormatError):
        assert Times.parse(str(Times.parse(text))) == Times.parse(text)
