"""What an image brings to boot with: kernels and their initramfs, unified kernel images, kernel arguments.

Read from the merged tree, before /boot is emptied for the digest.
"""

import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from oci2boot.boot.names import EXTRA, LINUX, is_program
from oci2boot.errors import FormatError, ImageError, InitramfsError, KernelError
from oci2boot.formats import cmdline, os_release
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.tree.files import Read, find_file, list_directory, read_file, show
from oci2boot.tree.model import Directory, File

MAX_KERNELS: Final = 64
MAX_ARGUMENTS_FILE: Final = 64 << 10
MAX_UKI_DEPTH: Final = 4

MODULES: Final = b"usr/lib/modules"
UKI_DIRECTORY: Final = f"boot/{LINUX}".encode()
INITRAMFS_NAMES: Final = (b"initrd.img-%s", b"initramfs-%s.img", b"initrd-%s")
"""Beneath /boot: Debian's, Fedora's and Arch's, SUSE's."""
KERNEL_ARGUMENTS: Final = (b"etc/kernel/cmdline", b"usr/lib/kernel/cmdline")
"""The first that is there counts, as for kernel-install(8)."""
KERNEL_ARGUMENTS_D: Final = b"usr/lib/bootc/kargs.d"

OS_RELEASE: Final = (b"etc/os-release", b"usr/lib/os-release")

SERIAL: Final[Mapping[str, str]] = MappingProxyType({"aarch64": "ttyAMA0"})
"""The first serial port of most machines of an architecture, where it is not ttyS0."""

_TERMINAL: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(,[0-9a-z]+)*")
VERSION: Final = re.compile(rb"[0-9A-Za-z][0-9A-Za-z._+~-]{0,127}")


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    version: str
    """What `uname -r` will say."""
    image: File
    image_path: bytes
    initramfs: File | None
    initramfs_path: bytes


def find_kernels(tree: Directory) -> list[Kernel]:
    """Return the kernels in order of version text: those in /usr/lib/modules, and others in /boot."""
    kernels: dict[bytes, Kernel] = {}
    flavours: set[bytes] = set()
    for version, _ in list_directory(tree, MODULES):
        beside = MODULES + b"/" + version
        if not VERSION.fullmatch(version):
            continue
        flavour = _flavour(tree, beside)
        flavours.add(flavour)
        for path in (beside + b"/vmlinuz", b"boot/vmlinuz-" + version, b"boot/vmlinuz-" + flavour):
            image = find_file(tree, path)
            if image:
                initramfs_paths = [beside + b"/initramfs.img", beside + b"/initrd"]
                initramfs_paths += [
                    b"boot/" + name % key for key in (version, flavour) for name in INITRAMFS_NAMES if key
                ]
                kernels[version] = _kernel(tree, version, image, path, initramfs_paths)
                break
    for name, _ in list_directory(tree, b"boot"):
        version = name.removeprefix(b"vmlinuz-")
        image = find_file(tree, b"boot/" + name)
        if version == name or version in kernels or version in flavours or not image:
            continue
        if not VERSION.fullmatch(version) or b"rescue" in version:
            continue
        kernels[version] = _kernel(
            tree, version, image, b"boot/" + name, [b"boot/" + form % version for form in INITRAMFS_NAMES]
        )
    if len(kernels) > MAX_KERNELS:
        raise ImageError(f"the image has {len(kernels)} kernels, more than {MAX_KERNELS}")
    return [kernel for _, kernel in sorted(kernels.items())]


def _flavour(tree: Directory, directory: bytes) -> bytes:
    """Arch names files in /boot after the package, as in `vmlinuz-linux`; its modules say which."""
    file = find_file(tree, directory + b"/pkgbase")
    content = file.content if file else b""
    return content.strip() if isinstance(content, bytes) and VERSION.fullmatch(content.strip()) else b""


def _kernel(tree: Directory, version: bytes, image: File, path: bytes, initramfs_paths: Sequence[bytes]) -> Kernel:
    for initramfs_path in initramfs_paths:
        initramfs = find_file(tree, initramfs_path)
        if initramfs:
            return Kernel(version.decode(), image, path, initramfs, initramfs_path)
    return Kernel(version.decode(), image, path, None, b"")


def choose_kernel(kernels: Sequence[Kernel], version: str | None = None, *, initramfs: bool = True) -> Kernel:
    """Return the one kernel, or the one of this version, and see that it has an initramfs where one is wanted."""
    listed = ", ".join(kernel.version for kernel in kernels)
    if not kernels:
        raise ImageError(
            "the image has no kernel: neither /usr/lib/modules/VERSION/vmlinuz nor /boot/vmlinuz-VERSION",
            hint="install a kernel package in the image (Debian: linux-image-amd64)",
        )
    chosen = [kernel for kernel in kernels if version in (None, kernel.version)]
    if not chosen:
        raise ImageError(f"the image has no kernel {version}", hint=f"it has {listed}")
    if len(chosen) > 1:
        raise KernelError(f"the image has {len(chosen)} kernels: {listed}")
    if initramfs and chosen[0].initramfs is None:
        raise InitramfsError(
            f"the kernel {chosen[0].version} has no initramfs in the image",
            hint="have it built in the image, by dracut, initramfs-tools or mkinitcpio",
        )
    return chosen[0]


def find_ukis(tree: Directory) -> list[bytes]:
    """Return the paths of the unified kernel images in /boot/EFI/Linux (and deeper) and /usr/lib/modules/VERSION."""
    ukis: list[bytes] = []

    def look(directory: bytes, depth: int) -> None:
        for name, inode in list_directory(tree, directory):
            path = directory + b"/" + name
            if isinstance(inode, Directory):
                if depth and not name.endswith(EXTRA.encode()):
                    look(path, depth - 1)
            elif is_program(name) and find_file(tree, path):
                ukis.append(path)

    look(UKI_DIRECTORY, MAX_UKI_DEPTH)
    for version, _ in list_directory(tree, MODULES):
        look(MODULES + b"/" + version, 0)
    return ukis


def read_os_release(tree: Directory, read: Read) -> bytes | None:
    """Return the first file that is there and not empty. os-release(5)."""
    contents = (read_file(tree, read, path, os_release.MAX_SIZE) for path in OS_RELEASE)
    return next(filter(None, contents), None)


def read_arguments(tree: Directory, read: Read, machine: str) -> list[str]:
    """Return the image's own kernel arguments in order: bootc's kargs.d, then /etc/kernel/cmdline.

    `machine` is the architecture as in bootc's `match-architectures`: `x86_64`, `aarch64`.
    """
    words: list[str] = []
    for name, _ in list_directory(tree, KERNEL_ARGUMENTS_D):
        path = KERNEL_ARGUMENTS_D + b"/" + name
        content = read_file(tree, read, path, MAX_ARGUMENTS_FILE) if name.endswith(b".toml") else None
        if content is not None:
            words += _parse_kargs(content, path, machine)
    for path in KERNEL_ARGUMENTS:
        content = read_file(tree, read, path, MAX_ARGUMENTS_FILE)
        if content is not None:
            try:
                words += cmdline.split(content.decode("ascii"))
            except UnicodeDecodeError as error:
                raise FormatError(f"/{show(path)} holds bytes outside ASCII") from error
            break
    return words


def _parse_kargs(content: bytes, path: bytes, machine: str) -> list[str]:
    try:
        table = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise FormatError(f"/{show(path)} is not TOML: {error}") from error
    kargs, machines = table.get("kargs"), table.get("match-architectures")
    for value in (kargs, machines if machines is not None else []):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise FormatError(f"/{show(path)} is not a table with a list `kargs`, and maybe one `match-architectures`")
    if machines is not None and not any(fnmatch.fnmatchcase(machine, pattern) for pattern in machines):
        return []
    return [word for text in kargs or [] for word in cmdline.split(text)]


def console_arguments(console: str, machine: str) -> list[str]:
    """Return the kernel arguments for a console: `serial`, or a terminal as the kernel calls it, `ttyS1,115200`."""
    if not _TERMINAL.fullmatch(console):
        raise FormatError(f"not a console: {console[:80]!r}", hint="serial, or a terminal such as ttyS0,115200")
    if console != "serial":
        return [f"console={console}"]
    # The last one is /dev/console; what is shown on a screen stays there too.
    return ["console=tty0", f"console={SERIAL.get(machine, 'ttyS0')},115200"]


def build_cmdline(image: Sequence[str], user: Sequence[str], promise: Sequence[ComposefsArg]) -> str:
    """Return the UKI's command line: the image's words, the user's, and those that promise the root file system."""
    for words, origin in ((image, "the image's kernel arguments"), (user, "the arguments given")):
        try:
            given = cmdline.find_composefs(words)
        except FormatError as error:
            raise ImageError(f"{origin}: {error.message}") from error
        if given:
            raise ImageError(
                f"{origin} bring {given[0]} along, the image is {promise[0]}",
                hint="leave it out: convert adds the right one",
            )
    return cmdline.join([*image, *user, *map(str, promise)])
