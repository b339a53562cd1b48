"""What boots a root file system, where it is not in it: kernel, initramfs, stub and boot loader of another directory.

The root that is promised then need not have a kernel. What says which system boots stays its own: os-release, kernel
arguments, and how its /etc and /var are mounted.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final

from oci2boot.boot import configuration
from oci2boot.boot.discover import (
    KERNEL_ARGUMENTS,
    KERNEL_ARGUMENTS_D,
    MAX_ARGUMENTS_FILE,
    MODULES,
    OS_RELEASE,
    VERSION,
    choose_kernel,
    find_kernels,
    find_ukis,
)
from oci2boot.boot.kernel import version_in
from oci2boot.boot.payload import EFI_NAMES, MAX_EFI_PROGRAM, MAX_INITRAMFS, MAX_KERNEL, STUB_DIRECTORY, machine_of
from oci2boot.digest import Hash
from oci2boot.errors import FormatError, ImageError
from oci2boot.formats import os_release
from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import SourceOptions
from oci2boot.system.files import read_limited
from oci2boot.tree.files import Read, find_file, list_directory, read_content
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File, Metadata, put
from oci2boot.workflows.make.digest import gather
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report
from oci2boot.workflows.requests import BootOptions

BOOTS: Final = (b"usr/lib/modules", b"usr/lib/systemd/boot", b"boot")
"""Where an image has what boots it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFrom:
    """Where kernel, initramfs and stub are; all None for the root file system itself."""

    PANEL: ClassVar = "Kernel"

    root: Annotated[
        Path | None,
        Option(
            "--kernel-root",
            "directory of another root file system, which has kernel, initramfs, modules, systemd-stub and boot "
            "loader; the one that is promised then needs none of them",
            metavar="DIR",
        ),
    ] = None
    linux: Annotated[
        Path | None, Option("--linux", "kernel to boot, a file; its modules are in /usr/lib/modules", metavar="FILE")
    ] = None
    initramfs: Annotated[
        Path | None,
        Option("--initramfs", "initramfs to boot it with, a file that --initrd image takes", metavar="FILE"),
    ] = None
    stub: Annotated[Path | None, Option("--stub", "systemd-stub to make the UKI of, a file", metavar="FILE")] = None


@dataclass(frozen=True, slots=True)
class BootRoot:
    """A root file system from which a UKI is built, as if it were the one that is promised."""

    tree: Directory
    read: Read
    boot: BootOptions
    """With the version of the kernel that was given."""
    image: Directory
    """The one that is promised, with what boots it: for who looks at the whole."""
    read_image: Read


def boot_root(
    asked: KernelFrom,
    image: Directory,
    read: Read,
    boot: BootOptions,
    architecture: str,
    algorithm: Hash,
    report: Report,
) -> BootRoot:
    """Return where the UKI's parts are taken from. `image` is the promised root file system, its /boot not emptied.

    Raises `ImageError` or `FormatError` for what is not a kernel, or would have no effect.
    """
    if asked == KernelFrom():
        return BootRoot(image, read, boot, image, read)
    if asked.initramfs and boot.initrd != "image":
        raise FormatError(
            f"--initramfs, and --initrd {boot.initrd}, which makes another", hint="leave one of the two out"
        )
    tree, tree_read = image, read
    if asked.root:
        gathered = gather(DirectoryReference(asked.root), algorithm, SourceOptions(), report)
        if not asked.linux and not find_kernels(gathered.tree) and not find_ukis(gathered.tree):
            raise ImageError(
                f"{asked.root} has no kernel: neither /usr/lib/modules/VERSION/vmlinuz nor /boot/vmlinuz-VERSION",
                hint="--kernel-root is the top of a root file system; --linux takes a kernel that is a file",
            )
        tree, tree_read = _of_the_image(gathered.tree, image, read), gathered.read
    tree, boot = _with_files(asked, tree, boot, architecture)
    whole = image
    for path in BOOTS:
        found = look_up(tree, path)
        whole = put(whole, path, found[1] if found else None)
    return BootRoot(tree, tree_read, boot, whole, _either(tree_read, read))


def _of_the_image(tree: Directory, image: Directory, read: Read) -> Directory:
    """Give the other root what says which system boots, and how."""
    limits = {
        **dict.fromkeys(OS_RELEASE, os_release.MAX_SIZE),
        **dict.fromkeys(configuration.PATHS, configuration.MAX_SIZE),
    }
    arguments = dict.fromkeys(KERNEL_ARGUMENTS, MAX_ARGUMENTS_FILE)
    for directory in (image, tree):
        for name, _ in list_directory(directory, KERNEL_ARGUMENTS_D):
            arguments[KERNEL_ARGUMENTS_D + b"/" + name] = MAX_ARGUMENTS_FILE
    # Where the image has no kernel arguments of its own, those that came with the kernel count.
    if any(find_file(image, path) for path in arguments):
        limits |= arguments
    for path, limit in limits.items():
        file = find_file(image, path)
        tree = put(tree, path, File(file.meta, read_content(file, read, path, limit)) if file else None)
    return tree


def _with_files(
    asked: KernelFrom, tree: Directory, boot: BootOptions, architecture: str
) -> tuple[Directory, BootOptions]:
    """Put the files that were named where a root has them."""
    if asked.linux:
        content = read_limited(asked.linux, MAX_KERNEL)
        version = boot.kernel or version_in(content) or _only_modules(tree, asked.linux)
        if not VERSION.fullmatch(version.encode()):
            raise FormatError(f"not a version of a kernel: {version!r}", hint="what `uname -r` says on it")
        boot = replace(boot, kernel=version)
        tree = put(tree, MODULES + b"/" + version.encode() + b"/vmlinuz", _file(content))
    if asked.initramfs:
        content = read_limited(asked.initramfs, MAX_INITRAMFS)
        version = choose_kernel(find_kernels(tree), boot.kernel, initramfs=False).version
        tree = put(tree, MODULES + b"/" + version.encode() + b"/initramfs.img", _file(content))
    if asked.stub:
        content = read_limited(asked.stub, MAX_EFI_PROGRAM)
        name = f"linux{EFI_NAMES[machine_of(architecture)]}.efi.stub"
        tree = put(tree, STUB_DIRECTORY + name.encode(), _file(content))
    return tree, boot


def _only_modules(tree: Directory, kernel: Path) -> str:
    found = [name for name, inode in list_directory(tree, MODULES) if isinstance(inode, Directory)]
    if len(found) != 1:
        raise ImageError(f"{kernel} does not say which version it is", hint="name it by --kver, as `uname -r` will")
    return found[0].decode(errors="replace")


def _file(content: bytes) -> File:
    return File(Metadata(mode=0o644), content)


def _either(first: Read, second: Read) -> Read:
    """Read a file of either root; the first knows what it has not."""

    def read(file: File) -> bytes:
        try:
            return first(file)
        except KeyError:
            return second(file)

    return read
