"""A tree with all that an EROFS image can hold, and the content of its files."""

import stat
from random import Random

from oci2boot.digest import External
from oci2boot.formats.fsverity import measure
from oci2boot.tree.model import Device, Directory, File, Inode, Metadata, Special, Symlink

LABEL = {b"security.selinux": b"system_u:object_r:usr_t:s0\0"}
Contents = dict[External, bytes]


def stored(contents: Contents, data: bytes) -> External:
    external = External(measure(data), len(data))
    contents[external] = data
    return external


def every_kind(contents: Contents) -> Directory:
    """Return a tree with all that an image can hold, the same each time."""
    random = Random(1)
    shared = Metadata(mode=0o644, uid=1000, gid=70000, mtime=1_700_000_000, mtime_nsec=123_456_789, xattrs=LABEL)
    linked = File(shared, stored(contents, random.randbytes(10_000)))
    big = {b"user.big": b"v" * 2000, b"user.small": b"s", **LABEL}
    files: dict[bytes, Inode] = {
        b"size-%d" % size: File(shared, stored(contents, random.randbytes(size)))
        for size in (65, 4095, 4096, 4097, 5 << 20)
    }
    files |= {
        b"empty": File(Metadata(mode=0), b""),
        b"inline": File(shared, b"i" * 64),
        b"set-id": File(Metadata(mode=0o6755, xattrs={b"security.capability": b"\1\0\0\2" + bytes(16)}), b"x"),
        b"same-1": File(shared, stored(contents, b"twice" * 3000)),
        b"same-2": File(Metadata(mode=0o600), stored(contents, b"twice" * 3000)),
        b"link-1": linked,
        b"link-2": linked,
        b"xattrs": File(Metadata(mode=0o644, xattrs=big), stored(contents, b"b" * 5000)),
        b"short": Symlink(shared, b"inline"),
        b"long": Symlink(shared, b"t" * 4000),
        b"pipe": Special(shared, stat.S_IFIFO),
        b"socket": Special(shared, stat.S_IFSOCK),
        b"char": Device(shared, stat.S_IFCHR, 0x0501),
        b"block": Device(shared, stat.S_IFBLK, 0x12345678),
        b"whiteout": Device(shared, stat.S_IFCHR, 0),
        b"latin1-\xe4 \n": File(shared, b"name"),
        b"n" * 255: File(shared, b"name"),
        b"old": File(Metadata(mode=0o644, mtime=-5), b"before 1970"),
    }
    many: dict[bytes, Inode] = {
        b"%05d-" % number + b"x" * 60: File(Metadata(mode=0o644), b"%d" % number) for number in range(700)
    }
    deep: Directory = Directory(shared, {b"bottom": File(shared, b"deep")})
    for _ in range(60):
        deep = Directory(shared, {b"d": deep})
    return Directory(
        Metadata(mode=0o755, xattrs=LABEL),
        {
            b"files": Directory(shared, files),
            b"many": Directory(Metadata(mode=0o1777, xattrs=LABEL), many),
            b"deep": deep,
            b"nothing": Directory(Metadata(mode=0o700), {}),
        },
    )
