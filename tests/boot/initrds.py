"""What an initramfs of each kind is known by, and what a machine that grows has: names without content."""

from collections.abc import Mapping
from pathlib import Path

from oci2boot.formats import cpio

PROGRAMS = [cpio.file(f"usr/bin/{name}".encode(), b"") for name in ("mount", "umount", "mkdir", "cat", "ln", "chroot")]
# Files by which Debian's initramfs of each kind is known; a merged /usr has links at the top.
SYSTEMD = [
    *PROGRAMS,
    cpio.directory(b"usr"),
    cpio.directory(b"usr/lib"),
    cpio.symlink(b"lib", b"usr/lib"),
    cpio.file(b"usr/lib/systemd/systemd", b""),
    cpio.file(b"usr/lib/systemd/system-generators/systemd-gpt-auto-generator", b""),
]
ORDER = b'/scripts/local-bottom/ntfs_3g "$@"\n[ -e /conf/param.conf ] && . /conf/param.conf\n'
INITRAMFS_TOOLS = [
    *PROGRAMS,
    cpio.file(b"scripts/functions", b""),
    cpio.file(b"scripts/local", b""),
    cpio.file(b"scripts/local-bottom/ORDER", ORDER),
]
CLOSED = "rd.shell=0 rd.emergency=reboot panic=10"
"""By which dracut and the kernel restart the machine: dracut.cmdline(7), kernel-parameters.txt."""
GROWING: Mapping[str, bytes | Path] = dict.fromkeys(
    ("usr/sbin/sfdisk", "usr/bin/partx", "usr/lib/systemd/systemd-growfs"), b""
)
