"""Kernels of an image and their arguments: is there one, and can it boot a verified root."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from oci2boot.boot.discover import MODULES, read_arguments
from oci2boot.boot.kernel import KernelSupport, check_kernel, check_verity_kernel
from oci2boot.errors import Error
from oci2boot.formats.tar import printable
from oci2boot.tree.files import find_file, list_directory, show
from oci2boot.workflows.lint.model import Found, Lint, Subject


@dataclass(frozen=True, slots=True)
class KnownBad:
    """Versions of the kernel, from the first to the last that it was seen in; distributions may have mended theirs."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]
    what: str
    where: str


_STACKING: Final = (
    "counts a file-backed EROFS as a level of stacking: with another glue than ours /etc cannot be an overlay, "
    "and systemd-sysext cannot extend /usr"
)
KNOWN_BAD: Final = (
    KnownBad((6, 12, 63), (6, 12, 65), _STACKING, "coreos/fedora-coreos-tracker#2087"),
    KnownBad((6, 18, 2), (6, 18, 4), _STACKING, "coreos/fedora-coreos-tracker#2087"),
    KnownBad((7, 0, 0), (7, 0, 6), "says of verified files that they have no fs-verity digest", "bootc-dev/bootc#2174"),
)


def support_of(subject: Subject, version: str) -> KernelSupport:
    if subject.verity:
        return check_verity_kernel(subject.tree, subject.read, version, subject.verity)
    return check_kernel(subject.tree, subject.read, version)


def _kernel(subject: Subject) -> Iterable[Found]:
    _ = subject.kernel
    return ()


def _same_kernel(subject: Subject) -> Iterator[Found]:
    """A second copy that is another kernel: which one boots depends on who looks."""
    for kernel in subject.kernels:
        version = kernel.version.encode()
        copies = (MODULES + b"/" + version + b"/vmlinuz", b"boot/vmlinuz-" + version)
        found = [(path, file) for path in copies if (file := find_file(subject.tree, path))]
        if any(file.content != kernel.image.content for _, file in found):
            yield Found(
                f"two kernels are called {kernel.version}; /{show(kernel.image_path)} is taken",
                [path for path, _ in found],
            )


def _config(subject: Subject) -> Iterator[Found]:
    if kernel := subject.kernel_if_known:
        yield from (Found(note, severity="warning") for note in support_of(subject, kernel.version).notes)


def _known_bad(subject: Subject) -> Iterator[Found]:
    if subject.verity:
        return
    versions = [subject.kernel_version] if subject.kernel_version else []
    if not versions and subject.stage == "source":
        kernel = subject.kernel_if_known
        versions = [kernel.version] if kernel else [uki.kernel_version for uki in subject.known_ukis]
    for version in dict.fromkeys(filter(None, versions)):
        parts = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", version)
        number = tuple(int(part or 0) for part in parts.groups()) if parts else ()
        shown = printable(version.encode())
        bad = (one for one in KNOWN_BAD if one.first <= number <= one.last)
        yield from (Found(f"Linux {shown} {one.what} ({one.where})") for one in bad)


def _arguments(subject: Subject) -> Iterable[Found]:
    if subject.machine:
        read_arguments(subject.tree, subject.read, subject.machine)
    return ()


def _console(subject: Subject) -> Iterator[Found]:
    if subject.machine is None:
        return
    try:
        ukis = subject.sealed or ([] if subject.kernels else subject.known_ukis)
        words = [word for uki in ukis for word in uki.cmdline.split()]
        words = words if ukis else read_arguments(subject.tree, subject.read, subject.machine)
    except Error:  # the checks of these say so
        return
    if not subject.boot.console and not any(word.startswith("console=") for word in (*words, *subject.boot.kargs)):
        yield Found("no kernel argument names a console: on a machine without a screen nothing is seen")


def _no_modules(subject: Subject) -> Iterator[Found]:
    """A kernel whose modules belong to another: an update of one package alone."""
    versions = {version for version, _ in list_directory(subject.tree, MODULES)}
    for kernel in subject.kernels:
        if versions and kernel.version.encode() not in versions:
            there = ", ".join(sorted(show(version) for version in versions))
            yield Found(f"the kernel {kernel.version} has no modules in the image: those there are of {there}")


LINTS: Final = (
    Lint(
        name="kernel",
        severity="error",
        what="There is one kernel, or the one that --kver names; or a UKI of the image has one.",
        hint="keep one kernel in the image",
        check=_kernel,
        bootc=True,
    ),
    Lint(
        name="duplicate-kernel",
        severity="warning",
        what="A kernel that lies in two places is the same in both.",
        hint="remove the older one",
        check=_same_kernel,
    ),
    Lint(
        name="kernel-modules",
        severity="warning",
        what="Each kernel has its modules.",
        hint="install kernel and modules of the same version",
        check=_no_modules,
    ),
    Lint(
        name="kernel-config",
        severity="error",
        what="The kernel has EROFS, overlayfs, loop devices and fs-verity; under --mode verity, what that needs.",
        hint="use a kernel that has it, or a newer one",
        check=_config,
    ),
    Lint(
        name="known-bad-kernel",
        severity="warning",
        what="The kernel is none that is known to fail with a composefs root.",
        hint="use another version, unless the distribution has mended this one",
        check=_known_bad,
        stage="root",
    ),
    Lint(
        name="bootc-kargs",
        severity="error",
        what="The files with kernel arguments can be read: /usr/lib/bootc/kargs.d, and /etc/kernel/cmdline.",
        hint="see bootc's documentation of kargs.d, and kernel-install(8)",
        check=_arguments,
        bootc=True,
    ),
    Lint(
        name="console",
        severity="note",
        what="A kernel argument names the console.",
        hint="--console serial, or a file in /usr/lib/bootc/kargs.d",
        check=_console,
    ),
)
