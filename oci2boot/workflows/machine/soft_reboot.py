"""A soft reboot into a new deployment: the kernel stays, all else is restarted from the new, verified root."""

import os
import re
from contextlib import suppress
from typing import Final

from oci2boot.boot.configuration import configuration_files
from oci2boot.boot.names import EXTRA, MAX_UKI, is_addon
from oci2boot.boot.sealed import read_addon
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, StoreError, TargetError, ToolError
from oci2boot.formats import pe
from oci2boot.formats.cmdline import split
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootDirectory, BootEntry, mapped
from oci2boot.sysroot.machine import Sysroot
from oci2boot.sysroot.nextroot import NEXT, WORK, clean_argvs, mount_argvs, unmount_argv
from oci2boot.sysroot.state import SysrootState, read_state
from oci2boot.system.files import plain_errors
from oci2boot.system.fsverity import measured
from oci2boot.system.run import run
from oci2boot.workflows.make.canonical import reader

SINCE: Final = 254
"""The version of systemd that can."""
_KEPT: Final = (b".linux", b".uname")
"""What of a UKI has to be equal: the kernel goes on, and the modules have to fit it."""


def soft_reboot(sysroot: Sysroot, digest: VerityDigest) -> None:
    """Mount the root of a deployment where systemd looks for the next one, and change to it.

    Raises `TargetError` where only a restart of the machine will do; then nothing is mounted.
    """
    state = read_state(sysroot)
    check_same_kernel(state, digest)
    said = run(["systemctl", "--version"], package="systemd").decode(errors="replace")
    version = re.match(r"systemd (\d+)", said)
    if version is None or int(version[1]) < SINCE:
        raise TargetError(f"this systemd is older than {SINCE} and has no soft reboot", hint="systemctl reboot")
    with Repository.open(sysroot.repository) as repository:
        tree = read_rootfs(repository.read_object(digest))
        read = reader(lambda content: repository.read_object(content.digest))
        if found := [path.decode() for path, _ in configuration_files(tree, read)]:
            raise TargetError(
                f"/{found[0]} of the new image says what is mounted: its initramfs does that", hint="systemctl reboot"
            )
        image = repository.object_path(digest)
    with plain_errors(StoreError, f"read {image}"):
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if measured(fd) != bytes.fromhex(digest.hex):
            raise StoreError(f"the kernel does not vouch for the image {digest}", hint="`oci2boot fsck` says more")
    finally:
        os.close(fd)
    with plain_errors(TargetError, f"make {NEXT}"):
        for path in (NEXT, WORK / "disk", WORK / "image"):
            path.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(NEXT):
        raise TargetError(f"{NEXT} is mounted already", hint=f"umount --recursive {NEXT}")
    try:
        try:
            for argv in mount_argvs(digest, image.resolve(), sysroot.root):
                run(argv, package="util-linux")
        finally:
            for argv in clean_argvs():
                with suppress(ToolError):  # what was not mounted
                    run(argv, package="util-linux")
        run(["systemctl", "soft-reboot"], package="systemd")
    except Error:
        with suppress(ToolError):
            run(unmount_argv(), package="util-linux")
        raise


def check_same_kernel(state: SysrootState, digest: VerityDigest) -> None:
    """Refuse a deployment that boots another kernel, or the same one with other arguments."""
    booted = state.booted
    if booted is None or digest == booted:
        raise TargetError("there is nothing new to restart into")
    kernels = []
    for one in (booted, digest):
        entry = next((entry for entry in state.entries_of(one) if entry.kind == "uki"), None)
        if entry is None or any(argument.insecure for argument in entry.arguments):
            raise TargetError(
                f"no UKI that insists on fs-verity boots {one}: its initramfs is needed", hint="systemctl reboot"
            )
        kernels.append(_kernel(state.directory, entry))
    if kernels[0] != kernels[1]:
        what = "another kernel" if kernels[0][0] != kernels[1][0] else "other kernel arguments"
        raise TargetError(f"the new image has {what}: only a full restart uses it", hint="systemctl reboot")


def _kernel(directory: BootDirectory, entry: BootEntry) -> tuple[list[bytes], list[str]]:
    """Return the kernel of a UKI, and all its arguments but the promise."""
    with mapped(directory.path / entry.path, MAX_UKI) as data:
        parsed = pe.parse(data)
        kernel = [pe.contents(data, section) for name in _KEPT for section in parsed.sections_named(name)]
        lines = [pe.contents(data, section).decode(errors="replace") for section in parsed.sections_named(b".cmdline")]
    for path in sorted(entry.files):
        if is_addon(path) and path.rpartition("/")[0].lower().endswith(EXTRA):
            with mapped(directory.path / path, MAX_UKI) as data:
                lines.append(read_addon(data))
    words = [word for line in lines for word in split(line.rstrip("\0\n "))]
    return kernel, [word for word in words if not word.replace('"', "").startswith("composefs")]
