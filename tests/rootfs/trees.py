"""Random trees on which all implementations agree, dense in what the formats treat specially.

Left out is what C mkcomposefs and composefs-rs 0.9 write differently: the tables of `test_vectors.py` say what and why.
"""

import stat
from typing import Any

from hypothesis import strategies as st

from oci2boot.digest import External, VerityDigest
from oci2boot.rootfs.overlay import STUB_NAMES
from oci2boot.tree.model import Device, Directory, File, Inode, Leaf, Metadata, Sparse, Special, Symlink

_POOL = [b"!x", b"+", b"-", b".-", b"...", b"00", b"7f", b"ff", b"a", b"b", b"=", b" ", b"\\x", b"\xff\xfe", b"n" * 255]
names = st.sampled_from(_POOL) | st.binary(min_size=1, max_size=40).map(
    lambda name: name.replace(b"/", b"_").replace(b"\0", b"0") if name not in (b".", b"..") else b"dots"
)
_XATTRS = [
    *(b"user.a", b"user.b", b"user.overlay.c", b"security.selinux", b"security.capability", b"lustre.lov"),
    *(
        b"trusted.t",
        b"trusted.overlay.redirect",
        b"trusted.overlay.overlay.metacopy",
        b"system.posix_acl_access",
        b"other",
    ),
]
_VALUES = [b"", b"-", b"x", b"y", b"=\\ \n\0\xff", b"v" * 300]
metadata = st.builds(
    Metadata,
    mode=st.integers(0, 0o7777),
    uid=st.sampled_from([0, 1000, 65535, 65536, 2**32 - 1]),
    gid=st.sampled_from([0, 65536]),
    mtime=st.sampled_from([0, 1, 1_700_000_000, 2**33]),
    mtime_nsec=st.sampled_from([0, 7, 999_999_999]),
    xattrs=st.dictionaries(st.sampled_from(_XATTRS), st.sampled_from(_VALUES), max_size=4),
)
_digests = st.sampled_from([bytes(32), bytes(range(32))]) | st.binary(min_size=32, max_size=32)
_externals = st.builds(
    External, _digests.map(lambda raw: VerityDigest("sha256", raw)), st.integers(1, 2**20) | st.integers(1, 2**44)
)
_contents = st.binary(max_size=80) | st.sampled_from([b"c" * 512]) | _externals | st.integers(1, 2**40).map(Sparse)
_targets = st.binary(min_size=1, max_size=60).map(lambda target: target.replace(b"\0", b"/")) | st.just(b"t" * 1024)
leaves: st.SearchStrategy[Leaf] = st.one_of(
    st.builds(File, metadata, _contents),
    st.builds(Symlink, metadata, _targets),
    st.builds(Device, metadata, st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]), st.integers(1, 2**32 - 1)),
    st.builds(Special, metadata, st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK])),
)
_whiteouts = st.builds(Device, metadata, st.just(stat.S_IFCHR), st.just(0))
_directories = st.builds(lambda meta: Directory(meta, {}), metadata)
_inodes: st.SearchStrategy[Inode | None] = st.sampled_from(
    [leaves, leaves, leaves, _directories, _directories, _whiteouts, st.none()]
).flatmap(lambda strategy: strategy)
_steps = st.tuples(st.integers(0, 30), names, _inodes)


@st.composite
def trees(draw: Any, whiteouts: bool = True) -> Directory:
    """Grow a tree: each step puts an inode, or a hard link to an earlier file, into one of the directories."""
    root = Directory(draw(metadata), {})
    directories: list[dict[bytes, Inode]] = [root.entries]  # type: ignore[list-item]
    linkable: list[Leaf] = []
    for number, name, inode in draw(st.lists(_steps, min_size=8, max_size=24)):
        entries = directories[number % len(directories)]
        whiteout = isinstance(inode, Device) and inode.rdev == 0
        like_a_stub = entries is root.entries and name in STUB_NAMES
        if name in entries or (whiteout and (like_a_stub or not whiteouts)):
            continue
        if inode is None:
            if linkable:
                entries[name] = linkable[number % len(linkable)]
            continue
        entries[name] = inode
        if isinstance(inode, Directory):
            directories.append(inode.entries)  # type: ignore[arg-type]
        elif not whiteout:
            linkable.append(inode)
    return root
