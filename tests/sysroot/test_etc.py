"""The three-way merge of /etc, against a second model of it: flat dictionaries."""

import random
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import FormatError, LimitError, TargetError
from oci2boot.sysroot.etc import EtcPlan, EtcPolicy, diff_etc, plan_etc
from oci2boot.sysroot.etc_overlay import view
from oci2boot.tree.model import SELINUX_XATTR, Device, Directory, File, Inode, Metadata, Symlink
from tests.sysroot.etc_model import changed, flat, merge, random_tree, some_upper

WHITEOUT = Device(Metadata(mode=0), stat.S_IFCHR, 0)
DIRECTORY = Metadata(mode=0o755)


def file(content: str = "", mode: int = 0o644, label: bytes | None = None) -> File:
    return File(Metadata(mode=mode, xattrs={SELINUX_XATTR: label} if label else {}), content.encode())


def folder(meta: Metadata = DIRECTORY, /, **entries: Inode) -> Directory:
    return Directory(meta, {name.encode(): inode for name, inode in entries.items()})


def opaque(**entries: Inode) -> Directory:
    return folder(Metadata(mode=0o755, xattrs={b"trusted.overlay.opaque": b"y"}), **entries)


def rows(plan: EtcPlan) -> list[tuple[str, str, str]]:
    return [(row.path, row.change, row.decision) for row in plan.rows]


@settings(max_examples=400)
@given(st.integers(0), st.sampled_from(["ours", "theirs"]))
def test_the_merge_is_that_of_three_dictionaries(seed: int, choice: str) -> None:
    """C.22, P.10"""
    chance = random.Random(seed)
    base = random_tree(chance)
    ours, theirs = changed(chance, base), changed(chance, base)
    assert isinstance(ours, Directory)
    assert isinstance(theirs, Directory)
    upper = some_upper(chance, base, ours)
    assert flat(view(base, upper)) == flat(ours)
    plan = plan_etc(base, theirs, upper, EtcPolicy.parse((choice,)))
    asked: list[bytes] = []

    def choose(path: bytes) -> str:
        asked.append(path)
        return choice

    assert flat(view(theirs, plan.upper)) == merge(flat(base), flat(ours), flat(theirs), choose)
    named = {row.path for row in plan.conflicts}
    expected = {"/etc" + one.decode(errors="backslashreplace").rstrip("/") for one in asked}
    assert named == expected
    again = plan_etc(theirs, theirs, plan.upper)
    assert flat(view(theirs, again.upper)) == flat(view(theirs, plan.upper))
    assert not again.conflicts


@given(st.integers(0))
def test_what_is_not_changed_leaves_no_trace(seed: int) -> None:
    chance = random.Random(seed)
    base = random_tree(chance)
    theirs = changed(chance, base)
    assert isinstance(theirs, Directory)
    for local in (base, theirs):
        plan = plan_etc(base, theirs, some_upper(chance, base, local))
        assert (plan.conflicts, dict(plan.upper.entries)) == ((), {})
    assert diff_etc(base, some_upper(chance, base, base)) == []


BASE = folder(
    passwd=file("root"),
    gone=file("x"),
    edited=file("x"),
    moved=file("x"),
    d=folder(one=file("1"), two=file("2")),
    e=folder(f=file()),
)


def test_each_local_change_is_a_row() -> None:
    """C.22: the plan is shown before anything is written."""
    upper = folder(
        passwd=file("root and me"),
        gone=WHITEOUT,
        edited=file("x", 0o600),
        new=file("n"),
        d=folder(two=file("mine")),
        e=WHITEOUT,
    )
    theirs = folder(
        passwd=file("root and daemon"),
        edited=file("x"),
        moved=folder(),
        d=folder(one=file("1")),
        e=folder(f=file(), g=file()),
    )
    plan = plan_etc(BASE, theirs, upper)
    assert [row.to_json() for row in plan.rows] == [
        {"path": "/etc/d/two", "change": "changed", "decision": "ours", "conflict": "the image has it no more"},
        {"path": "/etc/e", "change": "removed", "decision": "ours", "conflict": "the image changed it too"},
        {"path": "/etc/edited", "change": "metadata", "decision": "kept", "conflict": None},
        {"path": "/etc/gone", "change": "removed", "decision": "already there", "conflict": None},
        {"path": "/etc/new", "change": "added", "decision": "kept", "conflict": None},
        {"path": "/etc/passwd", "change": "changed", "decision": "ours", "conflict": "the image changed it too"},
    ]
    assert plan.to_json()["conflicts"] == 3
    assert set(plan.upper.entries) == {b"passwd", b"edited", b"new", b"d", b"e"}


def test_a_policy_per_path_decides() -> None:
    """C.22"""
    base, theirs = (folder(a=file(one), d=folder(b=file(one), c=file(one))) for one in ("base", "theirs"))
    upper = folder(a=file("ours"), d=folder(b=file("ours"), c=file("ours")))
    policy = EtcPolicy.parse(("/etc/d/c=ours", "/etc/d=theirs", "stop"))
    plan = plan_etc(base, theirs, upper, policy)
    assert rows(plan) == [
        ("/etc/a", "changed", "stop"),
        ("/etc/d/b", "changed", "theirs"),
        ("/etc/d/c", "changed", "ours"),
    ]
    with pytest.raises(TargetError, match=r"/etc/a$") as caught:
        plan.check()
    assert "/etc/ssh/*=ours" in (caught.value.hint or "")
    plan_etc(base, theirs, upper, EtcPolicy.parse(("/etc/*=theirs", "stop"))).check()


@pytest.mark.parametrize("word", ["", "mine", "/etc/a=", "/etc/a=mine", "a=ours", "/var/a=ours"])
def test_what_is_no_policy_is_refused(word: str) -> None:
    with pytest.raises(FormatError):
        EtcPolicy.parse((word,))


def test_the_label_follows_the_image_where_it_was_the_images() -> None:
    """P.4: an edited file gets the label of the new policy, without a conflict; one that chcon(1) set stays."""
    base = folder(a=file("x", label=b"u:r:old_t"), b=file("x", label=b"u:r:old_t"))
    theirs = folder(a=file("x", label=b"u:r:new_t"), b=file("x", label=b"u:r:new_t"))
    # the kernel ends labels with a NUL when it copies a file up
    upper = folder(a=file("mine", label=b"u:r:old_t\0"), b=file("x", label=b"u:r:mine_t\0"))
    plan = plan_etc(base, theirs, upper)
    assert rows(plan) == [("/etc/a", "changed", "kept"), ("/etc/b", "metadata", "kept")]
    labels = {name: inode.meta.xattrs[SELINUX_XATTR].rstrip(b"\0") for name, inode in plan.upper.entries.items()}
    assert labels == {b"a": b"u:r:new_t", b"b": b"u:r:mine_t"}
    untouched = folder(a=file("x", label=b"u:r:old_t\0"))
    assert plan_etc(base, theirs, untouched).upper.entries == {}
    assert diff_etc(base, untouched) == []


def test_hard_links_stay_links() -> None:
    one = file("mine", label=b"u:r:old_t")
    base = folder(a=file("x", label=b"u:r:old_t"), b=file("x", label=b"u:r:old_t"))
    theirs = folder(a=file("x", label=b"u:r:new_t"), b=file("x", label=b"u:r:new_t"))
    entries = plan_etc(base, theirs, folder(a=one, b=one, c=one)).upper.entries
    assert entries[b"a"] is entries[b"b"]
    assert flat(folder(c=entries[b"c"])) == flat(folder(c=one))
    spread = plan_etc(folder(), folder(), folder(a=one, d=folder(a=one))).upper.entries
    assert isinstance(spread[b"d"], Directory)
    assert spread[b"a"] is spread[b"d"].entries[b"a"]


def test_an_immutable_file_stays_so() -> None:
    """chattr +i on an overlay is an attribute of overlayfs's own."""
    immutable = File(
        Metadata(mode=0o644, xattrs={b"trusted.overlay.protattr": b"i", b"trusted.overlay.origin": b"\0"}), b"x"
    )
    plan = plan_etc(folder(a=file("x")), folder(a=file("x")), folder(a=immutable))
    assert dict(plan.upper.entries[b"a"].meta.xattrs) == {b"trusted.overlay.protattr": b"i"}


def test_files_that_were_only_copied_up_in_part_have_the_images_content() -> None:
    """Linux, overlayfs.rst, "Metadata only copy up" and "renaming directories"."""
    content = External(VerityDigest.parse("ab" * 32), 100)
    base = folder(a=File(Metadata(mode=0o644), content), d=folder(f=file("f")))
    metacopy = {b"trusted.overlay.metacopy": b""}
    upper = folder(
        b=File(
            Metadata(mode=0o600, xattrs={**metacopy, b"trusted.overlay.redirect": b"a"}),
            External(VerityDigest.parse("00" * 32), 100),
        ),
        a=WHITEOUT,
        d=WHITEOUT,
        e=folder(Metadata(mode=0o755, xattrs={b"trusted.overlay.redirect": b"/d"}), g=file("g")),
    )
    shown = view(base, upper)
    assert flat(shown) == flat(folder(b=File(Metadata(mode=0o600), content), e=folder(f=file("f"), g=file("g"))))
    lost = folder(b=File(Metadata(mode=0o600, xattrs=metacopy), b"123"))
    with pytest.raises(TargetError, match="not there"):
        view(base, lost)


def test_differences_are_those_of_config_diff() -> None:
    """P.10"""
    upper = folder(
        passwd=file("me"),
        gone=WHITEOUT,
        edited=file("x", 0o600),
        d=opaque(three=file()),
        e=Symlink(Metadata(mode=0o777), b"d"),
        moved=file("x"),
    )
    assert [(one.path, one.change) for one in diff_etc(BASE, upper)] == [
        ("/etc/d/one", "removed"),
        ("/etc/d/three", "added"),
        ("/etc/d/two", "removed"),
        ("/etc/e", "type"),
        ("/etc/edited", "metadata"),
        ("/etc/gone", "removed"),
        ("/etc/passwd", "changed"),
    ]


def test_digests_of_two_kinds_are_not_compared() -> None:
    a, b = (folder(a=File(Metadata(mode=0o644), External(VerityDigest.parse("ab" * size), 100))) for size in (32, 64))
    with pytest.raises(TargetError, match="sha512"):
        diff_etc(a, b)


def test_a_hostile_depth_is_an_error() -> None:
    deep = folder(a=file())
    for _ in range(5000):
        deep = folder(a=deep)
    for call in (
        lambda: plan_etc(deep, deep, deep),
        lambda: plan_etc(folder(), folder(), deep),
        lambda: diff_etc(deep, deep),
    ):
        with pytest.raises(LimitError, match="too deep"):
            call()
