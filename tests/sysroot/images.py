"""A small root file system with an /etc for a new machine to be told things in."""

from collections.abc import Mapping

from oci2boot.tree.model import Directory, File, Inode, Metadata

SSHD = b"Port 22\nInclude /etc/ssh/sshd_config.d/*.conf\n"
ETC = Metadata(mode=0o755, uid=0, gid=0, mtime=1234)
SSH = Metadata(mode=0o750, uid=0, gid=7, mtime=5678)


def file(content: bytes) -> File:
    return File(Metadata(mode=0o644), content)


def directory(entries: Mapping[bytes, Inode], meta: Metadata = ETC) -> Directory:
    return Directory(meta, entries)


def image(sshd: bytes | None = SSHD, root: Inode | None = None) -> Directory:
    ssh = directory({b"sshd_config": file(sshd), b"moduli": file(b"x")} if sshd is not None else {}, SSH)
    passwd = file(b"daemon:x:1:1::/usr/sbin:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\n")
    etc = directory({b"passwd": passwd, b"ssh": ssh, b"hostname": file(b"old\n"), b"other": directory({})})
    var = directory({b"lib": directory({}), b"spool": directory({})})
    return directory({b"etc": etc, b"var": var, b"root": root or directory({})})


def read(inode: File) -> bytes:
    assert isinstance(inode.content, bytes)
    return inode.content
