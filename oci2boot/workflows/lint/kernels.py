"""Kernel and initramfs of an image: is there one, can it boot a verified root, and does it stop where it cannot."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from oci2boot.boot import glue
from oci2boot.boot.discover import MODULES, Kernel, choose_kernel, read_arguments
from oci2boot.boot.kernel import KernelSupport, check_kernel, check_verity_kernel
from oci2boot.boot.payload import MAX_INITRAMFS, MICROCODE, WARN_SIZES, machine_of
from oci2boot.boot.sealed import Uki
from oci2boot.errors import Error
from oci2boot.formats import cpio, pe
from oci2boot.tree.files import find_file, list_directory, read_content, show
from oci2boot.workflows.lint.model import Found, Lint, Subject

UNITS: Final = ("composefs-setup-root.service", "bootc-root-setup.service", "oci2boot-setup-root.service")
"""Of an initramfs: what sets up the root file system."""
_UNIT: Final = re.compile(
    rb"((usr/)?lib|etc)/systemd/system/("
    + b"|".join(re.escape(unit.encode()) for unit in UNITS)
    + rb")(\.d/[^/]+\.conf)?"
)


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


def chosen(subject: Subject) -> Kernel | None:
    """Return the kernel that a UKI is built of; None where the image's own UKI boots. Raises what a conversion does."""
    if subject.sealed or (subject.ukis and not subject.kernels):
        return None
    return choose_kernel(subject.kernels, subject.boot.kernel, initramfs=False)


def _quietly(subject: Subject) -> Kernel | None:
    """Return None where the checks `kernel` and `uki` have said why there is none."""
    try:
        return chosen(subject)
    except Error:
        return None


def support_of(subject: Subject, version: str) -> KernelSupport:
    if subject.verity:
        return check_verity_kernel(subject.tree, subject.read, version, subject.verity)
    return check_kernel(subject.tree, subject.read, version)


def _kernel(subject: Subject) -> Iterable[Found]:
    chosen(subject)
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
    if kernel := _quietly(subject):
        yield from map(Found, support_of(subject, kernel.version).notes)


def _known_bad(subject: Subject) -> Iterator[Found]:
    if subject.verity:
        return
    versions = [subject.kernel_version] if subject.kernel_version else []
    if not versions and subject.stage == "source":
        kernel = _quietly(subject)
        versions = [kernel.version] if kernel else [uki.kernel_version for uki in subject.ukis]
    for version in dict.fromkeys(filter(None, versions)):
        parts = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", version)
        number = tuple(int(part or 0) for part in parts.groups()) if parts else ()
        yield from (
            Found(f"Linux {version} {bad.what} ({bad.where})") for bad in KNOWN_BAD if bad.first <= number <= bad.last
        )


def _initramfs(subject: Subject) -> Iterator[Found]:
    """What a conversion would make of the initramfs: is it known, and is all there that is added to it?"""
    kernel = _quietly(subject)
    if kernel is None or subject.boot.initrd != "image":
        return
    if kernel.initramfs is None:
        choose_kernel([kernel], initramfs=True)
        return
    members = _members(subject, kernel)
    if not subject.verity:
        yield from map(
            Found, glue.plan_glue(subject.tree, subject.read, members, support_of(subject, kernel.version)).notes
        )


def _members(subject: Subject, kernel: Kernel) -> Mapping[bytes, cpio.Found]:
    assert kernel.initramfs
    data = read_content(kernel.initramfs, subject.read, kernel.initramfs_path, MAX_INITRAMFS)
    return cpio.read(data, _wanted)


def _wanted(path: bytes) -> bool:
    return glue.keep(path) or bool(_UNIT.fullmatch(path))


def _glue(subject: Subject) -> Iterator[Found]:
    """Another's glue that is passed over, or that ends in a shell: what then boots is verified by nobody."""
    if subject.verity:
        return
    kernel = _quietly(subject)
    if kernel and kernel.initramfs and subject.boot.initrd == "image":
        yield from _open(_members(subject, kernel), kernel.initramfs_path)
    for uki in subject.sealed:
        if members := _members_of(uki, subject):
            if glue.brought_by(members) is None:
                yield Found("the initramfs of a UKI that promises an image knows nothing of composefs", [uki.path])
            yield from _open(members, uki.path)


def _members_of(uki: Uki, subject: Subject) -> Mapping[bytes, cpio.Found]:
    data = subject.read(uki.file)
    sections = pe.parse(data).sections_named(b".initrd")
    return cpio.read(pe.contents(data, sections[0]), _wanted) if sections else {}


def _open(members: Mapping[bytes, cpio.Found], path: bytes) -> Iterator[Found]:
    for unit in UNITS:
        text = _unit_text(members, unit)
        if text is None:
            continue
        if any(value.startswith("composefs") for value in _values(text, "ConditionKernelCommandLine")):
            yield Found(f"{unit} is passed over without a composefs argument: the disk itself would be booted", [path])
        if not any(value.startswith(("reboot", "poweroff", "halt")) for value in _values(text, "FailureAction")[-1:]):
            yield Found(f"where {unit} fails, the machine does not restart: it may end in a shell", [path])


def _unit_text(members: Mapping[bytes, cpio.Found], unit: str) -> str | None:
    """Return a unit and its drop-ins, the one of the last name last. systemd.unit(5)"""
    found = {
        name.rpartition(b"/system/")[2]: member.content or b""
        for name, member in members.items()
        if _UNIT.fullmatch(name)
    }
    if unit.encode() not in found:
        return None
    drop_ins = [text for name, text in sorted(found.items()) if name.startswith(f"{unit}.d/".encode())]
    return b"\n".join([found[unit.encode()], *drop_ins]).decode(errors="replace")


def _values(text: str, key: str) -> list[str]:
    """Return what a key is set to; an empty setting takes back those before it."""
    values: list[str] = []
    for value in re.findall(rf"^{key}=(.*)$", text, re.MULTILINE):
        values = [*values, value.strip()] if value.strip() else []
    return values


def _arguments(subject: Subject) -> Iterable[Found]:
    read_arguments(subject.tree, subject.read, machine_of(subject.architecture))
    return ()


def _console(subject: Subject) -> Iterator[Found]:
    words = [word for line in (uki.cmdline for uki in subject.sealed) for word in line.split()]
    if not words:
        words = read_arguments(subject.tree, subject.read, machine_of(subject.architecture))
    if not subject.boot.console and not any(word.startswith("console=") for word in (*words, *subject.boot.kargs)):
        yield Found("no kernel argument names a console: on a machine without a screen nothing is seen")


def _size(subject: Subject) -> Iterator[Found]:
    """An estimate; a conversion counts the glue and the stub, too."""
    kernel = _quietly(subject)
    if kernel is None:
        return
    parts = {"kernel": kernel.image.size}
    if kernel.initramfs and subject.boot.initrd == "image":
        parts["initramfs"] = kernel.initramfs.size
    if microcode := sum(file.size for path in MICROCODE if (file := find_file(subject.tree, path))):
        parts["microcode"] = microcode
    total = sum(parts.values())
    shown = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in parts.items())
    if subject.boot.size_limit is not None and total > subject.boot.size_limit:
        yield Found(
            f"what the firmware loads has {total} bytes, {subject.boot.size_limit} are allowed (MiB: {shown})",
            later=True,
        )
    elif budget := next((limit for limit in WARN_SIZES if total > limit), None):
        yield Found(
            f"what the firmware loads is more than the {budget >> 20} MiB that some takes (MiB: {shown})", later=True
        )


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
        name="initramfs",
        severity="error",
        what="The kernel has an initramfs that can be read, and all is there that is added to it.",
        hint="have it built in the image, by dracut, initramfs-tools or mkinitcpio",
        check=_initramfs,
    ),
    Lint(
        name="glue",
        severity="warning",
        what="The code in the initramfs that sets up the root fails closed.",
        hint="leave that glue out of the initramfs: ours is added, and reboots where it fails",
        check=_glue,
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
    Lint(
        name="size-budget",
        severity="warning",
        what="What the firmware loads is within the budgets of small devices, and within --uki-limit.",
        hint="build a smaller initramfs in the image, for this kind of machine only",
        check=_size,
    ),
)
