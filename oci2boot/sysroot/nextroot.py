"""The root file system that a soft reboot changes to, mounted as the initramfs would: systemd-soft-reboot.service(8).

The mount of the root is called after its image, as composefs-setup-root calls it: the kernel command line still names
what was booted before.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from oci2boot.digest import VerityDigest
from oci2boot.errors import FormatError, TargetError
from oci2boot.system.files import plain_errors
from oci2boot.system.run import Argv

NEXT: Final = Path("/run/nextroot")
WORK: Final = Path("/run/oci2boot-next")
MOUNTS: Final = Path("/proc/self/mountinfo")
WEAK: Final = "nosuid,nodev"
"""How what nothing verifies is mounted: a set-uid program in it would be anybody's way to root."""
_PREFIX: Final = "composefs:"
_ROOT: Final = re.compile(rf"^\d+ \d+ \S+ / / (?:.*) - overlay {_PREFIX}([0-9a-f]+) (\S+)$", re.MULTILINE)


def mount_argvs(digest: VerityDigest, image: Path, sysroot: Path) -> Iterator[Argv]:
    """Yield the calls, in the namespace of the first process, since this one's may be its own.

    `image` is the EROFS file, whose digest the caller has had from the kernel; `sysroot` is the physical root.
    """
    disk, metadata = WORK / "disk", WORK / "image"
    state = disk / "state/deploy" / digest.hex
    lower = f"lowerdir={metadata}::{disk}/composefs/objects"
    calls: list[Argv] = [
        # The physical root is read-only where it is mounted; what takes writes is mounted from here.
        ["--bind", sysroot, disk],
        ["--make-private", disk],
        ["-o", "remount,bind,rw", disk],
        ["-t", "erofs", "-o", "ro,nodev,loop", image, metadata],
        ["-t", "overlay", "-o", f"ro,metacopy=on,redirect_dir=on,verity=require,{lower}", _PREFIX + digest.hex, NEXT],
        ["-t", "overlay", "-o", f"rw,{WEAK},lowerdir={NEXT}/etc,upperdir={state}/etc/upper,workdir={state}/etc/work",
         "oci2boot", NEXT / "etc"],
        ["--bind", disk / "state/os/default/var", NEXT / "var"],
        ["-o", f"remount,bind,{WEAK},exec", NEXT / "var"],
        ["--bind", disk, NEXT / "sysroot"],
        ["-o", f"remount,bind,{WEAK},noexec,ro", NEXT / "sysroot"],
    ]  # fmt: skip
    for argv in calls:
        yield [*_OUTSIDE, "mount", *argv]


def clean_argvs() -> Iterator[Argv]:
    """Yield the calls that take the scratch mounts away: what is mounted on them holds on to them."""
    for name in ("image", "disk"):
        yield [*_OUTSIDE, "umount", "--lazy", WORK / name]


def unmount_argv() -> Argv:
    """Take the next root away: `systemctl reboot` would change to it if it stayed."""
    return [*_OUTSIDE, "umount", "--recursive", NEXT]


_OUTSIDE: Final = ("nsenter", "--target", "1", "--mount", "--")


def root_digest(mountinfo: str) -> VerityDigest | None:
    """Return the image that the root mount is called after; None without such a name, or where verity is optional."""
    last = None
    for match in _ROOT.finditer(mountinfo):
        last = match
    if last is None or "verity=require" not in last[2].split(","):
        return None
    try:
        return VerityDigest.parse(last[1])
    except FormatError:
        return None


def mounted_digest() -> VerityDigest | None:
    """Return what a soft reboot of ours made the root file system, or composefs-setup-root."""
    with plain_errors(TargetError, f"read {MOUNTS}"):
        return root_digest(MOUNTS.read_text(errors="replace"))
