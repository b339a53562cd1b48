"""The second view of layers: as GNU tar and umoci unpack them, and the same tree as the merged layers."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci2boot.digest import VerityDigest
from oci2boot.errors import ImageError
from oci2boot.formats.fsverity import measure
from oci2boot.oci.unpacked import UnpackedView
from oci2boot.tree.diff import compare, describe
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory, Symlink, find
from tests.oci.layouts import Layout
from tests.tarballs import END, directory, entries, file, hard_link, header, octal, pax, symlink
from tests.witness import program

LOWER = b"".join(
    (
        directory(b"usr/", mtime=7),
        directory(b"usr/gone/"),
        file(b"usr/gone/a", b"a" * 100),
        directory(b"usr/opaque/"),
        file(b"usr/opaque/old", b"old"),
        file(b"usr/replaced", b"file"),
        directory(b"usr/becomes-file/"),
        file(b"usr/becomes-file/inner", b"x"),
        file(b"usr/set", b"s" * 70, mode=0o4755, uid=5, gid=6, mtime=1234),
        hard_link(b"usr/also", b"usr/set"),
        symlink(b"usr/link", b"/etc/passwd"),
        header(b"usr/tty", b"3", major=octal(4, 8), minor=octal(1, 8)),
        header(b"usr/fifo", b"6"),
        pax((b"SCHILY.xattr.security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12)), (b"mtime", b"5.25")),
        file(b"usr/capable", b"c"),
    )
)
UPPER = b"".join(
    (
        file(b"usr/.wh.gone"),
        directory(b"usr/opaque/", mode=0o700),
        file(b"usr/opaque/.wh..wh..opq"),
        file(b"usr/opaque/new", b"new"),
        directory(b"usr/replaced/"),
        file(b"usr/becomes-file", b"now a file"),
        file(b"usr/also", b"no longer linked"),
    )
)


def keep(pieces: Iterator[bytes]) -> VerityDigest:
    return measure(b"".join(pieces))


def view(folder: Path, *layers: bytes) -> Directory:
    unpacked = UnpackedView(folder)
    for layer in layers:
        unpacked.apply(io.BytesIO(layer + END))
    return unpacked.tree(keep)


def merged(*layers: bytes) -> Directory:
    return merge([entries(layer) for layer in layers], lambda _: None)


def test_both_views_are_the_same_tree(tmp_path: Path) -> None:
    """B.2: owners, modes, devices and attributes, too, for an ordinary user."""
    (tmp_path / "view").mkdir()
    found = view(tmp_path / "view", LOWER, UPPER)
    assert list(compare(describe(merged(LOWER, UPPER), "sha256"), describe(found, "sha256"))) == []


def test_names_and_contents_are_those_that_umoci_unpacks(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.tag(layout.image([layout.layer(part + END) for part in (LOWER, UPPER)]), "v")
    image = f"{layout.path}:v"
    subprocess.run(
        [program("umoci"), "unpack", "--rootless", "--image", image, tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    theirs = tmp_path / "bundle/rootfs"
    (tmp_path / "view").mkdir()
    view(tmp_path / "view", LOWER, UPPER)

    def listed(root: Path) -> dict[str, bytes | Path | None]:
        return {
            str(path.relative_to(root)): path.readlink()
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
            for path in root.rglob("*")
        }

    ours = listed(tmp_path / "view")
    special = {"usr/tty", "usr/fifo"}  # placeholders in the view
    assert {name: value for name, value in ours.items() if name not in special} == {
        name: value for name, value in listed(theirs).items() if name not in special
    }


@pytest.mark.parametrize(
    "layer",
    [
        file(b"../escape", b"x"),
        symlink(b"usr", b"/tmp") + file(b"usr/escape", b"x"),
        hard_link(b"passwd", b"../../etc/passwd"),
        hard_link(b"a", b"missing"),
    ],
)
def test_nothing_leaves_the_folder(layer: bytes, tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()
    with pytest.raises(ImageError):
        view(tmp_path / "view", layer)
    assert [path.name for path in tmp_path.iterdir()] == ["view"]


def test_a_hard_link_to_a_symbolic_link_is_the_link(tmp_path: Path) -> None:
    """tar(5): a hard link is to the member; what that leads to is a file of this machine."""
    (tmp_path / "secret").write_bytes(b"of this machine")
    (tmp_path / "view").mkdir()
    layer = symlink(b"a", bytes(tmp_path / "secret")) + hard_link(b"b", b"a")
    found = find(view(tmp_path / "view", layer), b"/b")
    assert isinstance(found, Symlink)
    assert found.target == bytes(tmp_path / "secret")
