"""Layers on layers. Expected trees follow the OCI image specification and, where the two part, composefs-rs 0.9."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import LimitError
from oci2boot.tree import merge as module
from oci2boot.tree.merge import MAX_DEPTH, merge
from oci2boot.tree.model import Device, Directory, File, Metadata, Special, Symlink, walk
from tests.tarballs import directory, entries, file, hard_link, header, pax, symlink


def merged(*layers: bytes, warnings: list[str] | None = None) -> Directory:
    return merge(map(entries, layers), (warnings if warnings is not None else []).append)


def paths(tree: Directory) -> list[str]:
    return [path.decode() for path, _ in walk(tree)][1:]


def told(*layers: bytes) -> list[str]:
    warnings: list[str] = []
    merged(*layers, warnings=warnings)
    return warnings


def as_tuple(meta: Metadata) -> tuple[int, int, int, int, int]:
    return meta.mode, meta.uid, meta.gid, meta.mtime, meta.mtime_nsec


ETC = directory(b"etc") + file(b"etc/a", b"a") + directory(b"etc/d") + file(b"etc/d/b", b"b")


def test_every_kind_of_entry_becomes_its_inode() -> None:
    fields = {"mode": 0o4711, "uid": 1, "gid": 2, "mtime": 3}
    tree = merged(
        *(directory(b"d", **fields) + file(b"f", b"x", **fields) + symlink(b"l", b"../t", **fields),),
        header(b"c", b"3", major=4, minor=5) + header(b"b", b"4", major=8) + header(b"p", b"6"),
    )
    found = tree.entries
    assert all(as_tuple(found[name].meta) == (0o4711, 1, 2, 3, 0) for name in (b"d", b"f", b"l"))
    kinds = {name: type(inode) for name, inode in found.items()}
    assert kinds == {b"d": Directory, b"f": File, b"l": Symlink, b"c": Device, b"b": Device, b"p": Special}
    block, pipe = found[b"b"], found[b"p"]
    assert isinstance(block, Device)
    assert (block.kind, block.rdev) == (stat.S_IFBLK, 0x800)
    assert isinstance(pipe, Special)
    assert pipe.kind == stat.S_IFIFO


def test_a_whiteout_removes_a_file_or_a_directory_of_a_lower_layer() -> None:
    assert paths(merged(ETC, file(b"etc/.wh.a"))) == ["/etc", "/etc/d", "/etc/d/b"]
    assert paths(merged(ETC, file(b"./etc/.wh.d"))) == ["/etc", "/etc/a"]
    assert paths(merged(ETC, file(b".wh.etc") + ETC)) == ["/etc", "/etc/a", "/etc/d", "/etc/d/b"]
    assert paths(merged(ETC, file(b"etc/.wh.A") + file(b"etc/.wh.a.b"))) == paths(merged(ETC))
    assert told(ETC, file(b"etc/.wh.a")) == []


def test_an_opaque_marker_hides_what_lower_layers_have_in_the_directory() -> None:
    upper = directory(b"etc", mode=0o700) + file(b"etc/.wh..wh..opq") + file(b"etc/new")
    tree = merged(ETC, upper)
    assert paths(tree) == ["/etc", "/etc/new"]
    assert tree.entries[b"etc"].meta.mode == 0o700
    assert told(ETC, upper) == []


def test_a_whiteout_acts_on_its_own_layer_too_and_names_what_is_lost() -> None:
    """As composefs-rs 0.9 does; the image specification would keep what the layer itself holds."""
    upper = directory(b"etc") + directory(b"etc/d") + file(b"etc/d/new") + file(b"etc/.wh.d") + file(b"etc/x")
    assert paths(merged(ETC, upper)) == ["/etc", "/etc/a", "/etc/x"]
    assert told(ETC, upper) == [
        (
            "layer 2: /etc/d, /etc/d/new: removed by a later whiteout of the same layer, as composefs-rs does;"
            " the image specification would keep it"
        )
    ]
    again = upper + directory(b"etc/d")
    assert len(told(ETC, again)) == 1  # what is put back after its whiteout is not there twice


def test_a_directory_over_a_directory_changes_its_metadata_alone() -> None:
    tree = merged(ETC, pax((b"mtime", b"7.5")) + directory(b"etc", mode=0o711, uid=5))
    assert as_tuple(tree.entries[b"etc"].meta) == (0o711, 5, 0, 7, 500_000_000)
    assert paths(tree) == paths(merged(ETC))


def test_what_follows_a_whiteout_lands_in_the_tree() -> None:
    layer = directory(b"a") + file(b"a/x") + file(b".wh.a") + directory(b"a") + file(b"a/y")
    assert paths(merged(layer)) == ["/a", "/a/y"]
    assert paths(merged(file(b"a/x") + file(b".wh.a") + file(b"a/y"))) == ["/a", "/a/y"]


def test_what_went_with_its_directory_is_not_warned_of() -> None:
    assert told(file(b"f/d/x") + file(b"f")) == []
    assert told(file(b"f/d/x") + file(b".wh.f")) != []  # /f/d/x, which the image specification would keep
    layer = directory(b"f") + file(b"f/x") + file(b"f") + directory(b"f") + file(b"f/x")
    assert told(layer) == ["layer 1: /f, /f: more than once in the layer, the last one counts"]


def test_other_kinds_replace_what_was_there() -> None:
    assert paths(merged(ETC, symlink(b"etc", b"x"))) == ["/etc"]
    assert paths(merged(symlink(b"etc", b"x"), ETC)) == paths(merged(ETC))
    assert told(symlink(b"etc", b"x"), ETC) == []


def test_a_hard_link_is_the_same_inode_under_another_name() -> None:
    tree = merged(ETC, hard_link(b"h", b"./etc/a", mode=0o111) + hard_link(b"etc/h", b"h"))
    etc = tree.entries[b"etc"]
    assert isinstance(etc, Directory)
    assert tree.entries[b"h"] is etc.entries[b"a"] is etc.entries[b"h"]
    replaced = merged(ETC, hard_link(b"h", b"etc/a"), file(b"etc/a", b"new") + file(b"etc/.wh.h"))
    kept = replaced.entries[b"h"]
    assert isinstance(kept, File)
    assert kept.content == b"a"


def test_a_repeated_path_is_named_and_the_last_counts() -> None:
    layer = file(b"f", b"1") + file(b"./f", b"2")
    found = merged(layer).entries[b"f"]
    assert isinstance(found, File)
    assert found.content == b"2"
    assert told(layer) == ["layer 1: /f: more than once in the layer, the last one counts"]
    assert told(file(b"f"), file(b"f")) == []


def test_parents_without_entries_are_made_and_named() -> None:
    tree = merged(file(b"a/b/c"))
    assert [as_tuple(inode.meta) for path, inode in walk(tree) if path in (b"/a", b"/a/b")] == [(0o755, 0, 0, 0, 0)] * 2
    (warning,) = told(file(b"a/b/c"))
    assert warning.startswith("layer 1: /a, /a/b: without an entry of its own")
    late = file(b"a/c") + directory(b"a", mode=0o700)
    assert merged(late).entries[b"a"].meta.mode == 0o700
    assert told(late) == told(directory(b"a"), file(b"a/c")) == []


def test_a_warning_names_five_paths_and_counts_the_others() -> None:
    (warning,) = told(b"".join(file(b"f%d" % number) * 2 for number in range(9)))
    assert "/f0, /f1, /f2, /f3, /f4 and 4 more: more than once" in warning


def test_the_root_entry_sets_the_metadata_of_the_root() -> None:
    tree = merged(directory(b"./", mode=0o555, mtime=9) + file(b"f"))
    assert as_tuple(tree.meta) == (0o555, 0, 0, 9, 0)
    assert paths(tree) == ["/f"]


def test_entries_are_counted_over_all_layers_with_the_parents_they_imply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 5)
    merged(file(b"a/b"), file(b"c/d"), file(b"e"))
    with pytest.raises(LimitError, match="over 5 entries"):
        merged(file(b"a/b"), file(b"c/d/e"), file(b"e"))


def test_the_depth_of_directories_is_limited() -> None:
    def deep(depth: int) -> bytes:
        return pax((b"path", b"/".join([b"d"] * depth))) + directory(b"x")

    assert len(paths(merged(deep(MAX_DEPTH)))) == MAX_DEPTH
    with pytest.raises(LimitError, match="directories deep"):
        merged(deep(MAX_DEPTH + 1))


NAMES = st.sampled_from([b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["dir", "file", "whiteout", "opaque"]), NAMES, st.integers(0, 9)), min_size=1, max_size=8
)


@given(st.lists(STEPS, min_size=1, max_size=3))
def test_merging_is_what_a_plain_map_of_paths_says(layers: list[list[tuple[str, bytes, int]]]) -> None:
    """A model with no cache and no tree: a map from path to what is there."""
    there: dict[bytes, int | None] = {}

    def remove_below(path: bytes) -> None:
        for other in [other for other in there if other.startswith(path + b"/")]:
            del there[other]

    archives = []
    for steps in layers:
        parts = []
        for verb, path, number in steps:
            parent, _, name = path.rpartition(b"/")
            above = [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]
            below = [*above, path] if verb == "opaque" else above
            if any(there.get(up) is not None for up in below):
                continue  # through a file: refused, a case of its own
            if verb in ("dir", "file"):
                there.update({up: None for up in above if up not in there})
                if verb == "file":
                    remove_below(path)
                there[path] = None if verb == "dir" else number
                parts.append(directory(path) if verb == "dir" else file(path, b"%d" % number))
            elif verb == "whiteout":
                remove_below(path)
                there.pop(path, None)
                parts.append(file((parent + b"/" if parent else b"") + b".wh." + name))
            else:
                remove_below(path)
                parts.append(file(path + b"/.wh..wh..opq"))
        archives.append(b"".join(parts))
    tree = merged(*archives)
    found = {
        path[1:]: int(inode.content) if isinstance(inode, File) and isinstance(inode.content, bytes) else None
        for path, inode in walk(tree)
        if path != b"/"
    }
    assert found == there
