"""Where an installed machine keeps what: its physical root and its boot directory, live or mounted by someone else."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import NoBootDirectoryError, NoMachineError, TargetError
from oci2boot.formats.cmdline import find_composefs, find_root_hashes, split
from oci2boot.sysroot.nextroot import mounted_digest
from oci2boot.system.files import plain_errors
from oci2boot.system.mounts import is_read_only, make_writable

LIVE: Final = Path("/sysroot")
ESPS: Final = (Path("/efi"), Path("/boot"), Path("/boot/efi"))
"""Where systemd mounts the EFI system partition, and where distributions do. systemd-gpt-auto-generator(8)."""
COMMAND_LINE: Final = Path("/proc/cmdline")
_LOCK: Final = "state/oci2boot/lock"
_PID_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Sysroot:
    """The places of one machine."""

    root: Path
    """The physical root, with composefs/ and state/."""
    esp: Path | None
    """The root of the file system that the firmware reads."""
    live: bool = False
    """This machine, running."""

    @property
    def repository(self) -> Path:
        return self.root / "composefs"

    @property
    def deployments(self) -> Path:
        return self.root / "state/deploy"

    @property
    def var(self) -> Path:
        return self.root / "state/os/default/var"

    def boot_directory(self) -> Path:
        """Return the ESP; without its ESP, a machine cannot be changed, and its garbage not be collected."""
        if self.esp is None:
            where = ", ".join(map(str, ESPS))
            raise NoBootDirectoryError(
                f"the EFI system partition is not mounted at {where}" if self.live else "where is the boot directory?",
                hint="name the directory with its files",
            )
        return self.esp


def open_sysroot(root: Path | None = None, esp: Path | None = None) -> Sysroot:
    """Find the running machine, or take the one whose physical root somebody mounted at `root`."""
    live = root is None
    root = root or LIVE
    if live and booted_root_hashes():
        raise TargetError(
            "this machine's root file system is under dm-verity: it has two slots, and no deployments to pin, "
            "delete, reset or give arguments of their own",
            hint="status, upgrade, switch and rollback are there; what it wrote is in its overlays' upper directories",
        )
    if not (root / "composefs/meta.json").is_file():
        raise NoMachineError(
            f"{root} holds no composefs repository" if not live else "this machine was not installed by oci2boot",
            hint="name the physical root of one that was",
        )
    return Sysroot(root, esp or (mounted_esp() if live else None), live)


def mounted_esp() -> Path | None:
    """Return where this machine's boot directory is mounted."""
    for path in ESPS:
        try:
            # Looking into it wakes an automount.
            if (path / "EFI").is_dir() and os.stat(path).st_dev != os.stat(path / "..").st_dev:  # noqa: PTH116
                return path
        except OSError:
            continue
    return None


def booted_digest(sysroot: Sysroot) -> VerityDigest | None:
    """Return the digest that this machine runs, None where it is another's physical root.

    After a soft reboot it is not what the kernel was started with, and the root mount says what it is.
    """
    if not sysroot.live:
        return None
    if mounted := mounted_digest():
        return mounted
    with plain_errors(TargetError, f"read {COMMAND_LINE}"):
        line = COMMAND_LINE.read_bytes().decode("ascii", "backslashreplace").rstrip("\n")
    arguments = find_composefs(split(line))
    if len(arguments) > 1:
        # The same root file system by several digests: the initramfs took the one that is here.
        objects = sysroot.root / "composefs/objects"
        arguments = [argument for argument in arguments if (objects / argument.digest.path).is_file()]
        if len(arguments) != 1:
            raise TargetError("the kernel command line names more than one root file system")
    return arguments[0].digest if arguments else None


def booted_root_hashes() -> list[RootHash]:
    """Return what this machine's kernel was told of a root file system under dm-verity."""
    with plain_errors(TargetError, f"read {COMMAND_LINE}"):
        line = COMMAND_LINE.read_bytes().decode("ascii", "replace").rstrip("\n")
    return find_root_hashes(split(line)) if line.isascii() else []


@contextmanager
def changing(sysroot: Sysroot) -> Iterator[None]:
    """Be the only command that changes the machine, and able to write to its physical root."""
    if sysroot.live and is_read_only(sysroot.root):
        make_writable(sysroot.root)
    path = sysroot.root / _LOCK
    with plain_errors(TargetError, f"lock {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, _PID_MAX, 0).decode("ascii", errors="replace").strip()
            who = f", process {holder}" if holder.isdecimal() else ""
            raise TargetError(
                f"another oci2boot command is changing {sysroot.root}{who}", hint="wait until it has ended"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)
