"""What dracut of the image is asked for, and its words. dracut(8), version 059 or newer."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from oci2boot.boot.discover import choose_kernel, find_kernels
from oci2boot.boot.kernel import read_kernel
from oci2boot.boot.programs import find_program
from oci2boot.errors import FormatError, ImageError, InitramfsError
from oci2boot.tree.files import Read, find_file
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory

PROGRAM: Final = "/usr/bin/dracut"
VERITYSETUP: Final = "/usr/lib/systemd/systemd-veritysetup"
VERITY_PACKAGES: Final = "Debian: systemd-cryptsetup; Fedora: systemd-udev; Arch: systemd"
VERITY_MODULES: Final = ("dm", "systemd-veritysetup")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PATH: Final = re.compile(r"/[A-Za-z0-9_./+@:,%=~-]+")
"""What a shell takes as it is: dracut is one."""
_FAILED: Final = re.compile(r"dracut\[[EF]\]|dracut-install: ERROR")


@dataclass(frozen=True, slots=True)
class DracutOptions:
    """What goes into the initramfs besides what dracut and its configuration in the image choose."""

    install: tuple[str, ...] = ()
    """Absolute paths in the image."""
    add_drivers: tuple[str, ...] = ()
    force_drivers: tuple[str, ...] = ()
    """Loaded before anything else."""
    modules: tuple[str, ...] = ()
    """Of dracut."""
    filesystems: tuple[str, ...] = ()
    """If any, the initramfs has the kernel modules of no others."""

    @classmethod
    def parse(
        cls,
        install: Iterable[str] = (),
        add_drivers: Iterable[str] = (),
        force_drivers: Iterable[str] = (),
        modules: Iterable[str] = (),
        filesystems: Iterable[str] = (),
    ) -> Self:
        """Take lists as dracut's options have them, words with spaces between: `/a /b`."""
        return cls(
            _words(install, _PATH, "an absolute path"),
            _words(add_drivers, _NAME, "the name of a kernel module"),
            _words(force_drivers, _NAME, "the name of a kernel module"),
            _words(modules, _NAME, "the name of a dracut module"),
            _words(filesystems, _NAME, "the name of a file system"),
        )

    def to_json(self) -> dict[str, list[str]]:
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}


def _words(given: Iterable[str], form: re.Pattern[str], what: str) -> tuple[str, ...]:
    words = [word for text in given for word in text.split()]
    for word in words:
        if not form.fullmatch(word) or ".." in word.split("/"):
            raise FormatError(f"not {what}, for dracut: {word!r}")
    return tuple(dict.fromkeys(words))


def plan_dracut(
    tree: Directory, read: Read, kernel: str | None, options: DracutOptions, *, verity: bool = False
) -> str:
    """Return the version of the kernel to build for. Raises `ImageError` for what the image does not have."""
    version = choose_kernel(find_kernels(tree), kernel, initramfs=False).version
    if not find_file(tree, PROGRAM.encode()):
        raise InitramfsError(
            f"the image has no {PROGRAM}",
            hint="install the package dracut (Arch, Debian, Fedora, openSUSE) in the image",
        )
    if verity and not find_file(tree, VERITYSETUP.encode()):
        raise InitramfsError(
            f"the image has no {VERITYSETUP}, which opens the root file system from dracut's initramfs",
            hint=f"install it in the image ({VERITY_PACKAGES})",
        )
    for path in options.install:
        if not look_up(tree, path.encode()):
            raise ImageError(f"the image has no {path}, which dracut must install")
    files = read_kernel(tree, read, version)
    for name in (*options.add_drivers, *options.force_drivers, *options.filesystems):
        module = name.replace("-", "_")
        if module not in files.dependencies and module not in files.builtin:
            raise ImageError(
                f"the kernel {version} has no module {name}, which the initramfs must have",
                hint="install the kernel's modules in the image, or leave it out",
            )
    for name in options.modules:
        if not _has_module(tree, name):
            raise ImageError(f"dracut in the image has no module {name}")
    if not find_program(tree, b"cpio") and not find_program(tree, b"3cpio"):
        raise ImageError("the image has no cpio, which dracut needs", hint="install the package cpio in the image")
    return version


def _has_module(tree: Directory, name: str) -> bool:
    """Say whether a directory of dracut's modules is called `NNname`."""
    modules = look_up(tree, b"usr/lib/dracut/modules.d")
    entries = modules[1].entries if modules and isinstance(modules[1], Directory) else ()
    return any(re.fullmatch(rb"\d\d" + re.escape(name.encode()), entry) for entry in entries)


def dracut_argv(version: str, options: DracutOptions, modules: Iterable[str], output: str) -> list[str]:
    """Return the words for the program in the image; `modules` are added to the user's.

    Reproducible as long as SOURCE_DATE_EPOCH is set.
    """
    argv = [PROGRAM, "--force", "--no-hostonly", "--no-hostonly-cmdline", "--reproducible", "--kver", version]
    for name, words in (
        ("--add", tuple(dict.fromkeys([*modules, *options.modules]))),
        ("--add-drivers", options.add_drivers),
        ("--force-drivers", options.force_drivers),
        ("--install", options.install),
        ("--filesystems", options.filesystems),
    ):
        if words:
            argv += [name, " ".join(words)]
    return [*argv, output]


def complaints(said: str) -> list[str]:
    """Return the lines by which dracut tells that something is not in the initramfs; it may end with success."""
    return [line.strip() for line in said.splitlines() if _FAILED.search(line)]
