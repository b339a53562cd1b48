"""Can this kernel boot a composefs image, and which modules does that take? Read from the image's own files."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.boot.discover import MODULES
from oci2boot.errors import FormatError, ImageError
from oci2boot.formats import kconfig
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.rootfs.mkfs import CONFIG
from oci2boot.tree.files import Read, read_file, show
from oci2boot.tree.model import Directory

MAX_MODULES_FILE: Final = 16 << 20
"""modules.dep; Debian's has half a megabyte."""
MAX_DEPENDENCIES: Final = 1024

REQUIRED: Final = (
    ("EROFS_FS", "erofs", "the metadata of the image is EROFS"),
    ("OVERLAY_FS", "overlay", "overlayfs joins the metadata and the objects"),
    ("BLK_DEV_LOOP", "loop", "the image is checked, and in some kernels mounted, by a loop device"),
)
"""(option, module, what it is for); `y` or `m` will do."""
BUILT_IN: Final = (
    ("FS_VERITY", "fs-verity checks every file"),
    ("EROFS_FS_XATTR", "EROFS keeps the digests in extended attributes"),
)
"""These are no modules: only `y` will do."""
HELPFUL: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "sha256_generic", "sha512_generic", "ext4")
"""Modules for the disk, taken along where the kernel has them as modules and the initramfs does not."""

OVERLAY_VERITY: Final = (6, 6)
"""First kernel whose overlayfs has data-only layers and verity=require; distributions have it in older ones."""


@dataclass(frozen=True, slots=True)
class KernelSupport:
    modules: tuple[bytes, ...]
    """Paths in the image of the module files that boot needs, each after those that it depends on."""
    file_backed: bool | None
    """EROFS mounts a file without a loop device; None: not known."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """What the image's files say of a kernel."""

    version: str
    options: Mapping[str, str] | None
    """Its configuration; None where the image has none."""
    dependencies: Mapping[str, tuple[bytes, Sequence[bytes]]]
    """Module → its path and those of the modules it needs, beneath `directory`."""
    builtin: frozenset[str]

    @property
    def directory(self) -> bytes:
        return MODULES + b"/" + self.version.encode()

    def in_order(self, wanted: Iterable[str]) -> list[bytes]:
        """Return the paths, beneath `directory`, of the wanted modules that there are, each after those it needs.

        Raises `FormatError` for a path that leads out of there, `ImageError` for too many.
        """
        ordered: dict[bytes, None] = {}
        for name in wanted:
            if name in self.dependencies:
                path, needs = self.dependencies[name]
                ordered.update(dict.fromkeys(reversed(needs)))
                ordered.setdefault(path)
        if len(ordered) > MAX_DEPENDENCIES:
            raise ImageError(f"the kernel's modules.dep asks for {len(ordered)} modules to mount the root file system")
        for path in ordered:
            if path.startswith(b"/") or b".." in path.split(b"/"):
                raise FormatError(f"the kernel's modules.dep names the path {show(path)!r} outside its directory")
        return list(ordered)

    def check_feature(self, option: str, module: str, reason: str) -> None:
        """Raise `ImageError` where neither the kernel itself nor a module has it."""
        there = module in self.builtin or module in self.dependencies or (self.options or {}).get(option) == "y"
        if self.options is not None and self.options.get(option, "n") == "n":
            raise self._refusal(option, reason)
        if not there:
            raise ImageError(
                f"the kernel {self.version} has no module {module}, and {reason}",
                hint="install the kernel's modules in the image",
            )

    def check_builtin(self, option: str, reason: str) -> None:
        """Raise `ImageError` where the configuration is known not to have what cannot be a module."""
        if self.options is not None and self.options.get(option, "n") != "y":
            raise self._refusal(option, reason)

    def _refusal(self, option: str, reason: str) -> ImageError:
        return ImageError(
            f"the kernel {self.version} is built without CONFIG_{option}: {reason}", hint="use a kernel that has it"
        )


def read_kernel(tree: Directory, read: Read, version: str) -> KernelFiles:
    directory = MODULES + b"/" + version.encode()
    dependencies = _parse_dependencies(read_file(tree, read, directory + b"/modules.dep", MAX_MODULES_FILE) or b"")
    options = _read_config(tree, read, directory, version)
    return KernelFiles(version, options, dependencies, builtin_modules(tree, read, version))


def check_kernel(tree: Directory, read: Read, version: str) -> KernelSupport:
    """Refuse a kernel without EROFS, overlayfs, loop devices or fs-verity, with the reason."""
    kernel = read_kernel(tree, read, version)
    notes = []
    for option, module, reason in REQUIRED:
        kernel.check_feature(option, module, reason)
    if kernel.options is None:
        notes.append(f"the image has no configuration of the kernel {version}: whether it has fs-verity shows at boot")
    for option, reason in BUILT_IN:
        kernel.check_builtin(option, reason)
    number = re.match(r"(\d{1,4})\.(\d{1,4})", version)
    if number and (int(number[1]), int(number[2])) < OVERLAY_VERITY:
        notes.append(
            f"the kernel {version} is older than 6.6: overlayfs with verity must have been added by its distribution"
        )
    return _support(kernel, (*HELPFUL, *(module for _, module, _ in REQUIRED)), notes)


def check_verity_kernel(tree: Directory, read: Read, version: str, options: VerityOptions) -> KernelSupport:
    """Refuse a kernel that could not mount, verify or overlay the root file system of these options."""
    kernel = read_kernel(tree, read, version)
    features = [REQUIRED[0]]
    built_in = {"EROFS_FS_XATTR": "extended attributes hold capabilities and labels"}
    if options.verity:
        features.append(("DM_VERITY", "dm_verity", "dm-verity guards the root file system"))
    if options.verity and options.signature:
        built_in["DM_VERITY_VERIFY_ROOTHASH_SIG"] = "the root hash must be signed, and the kernel is to check it"
    for name in sorted(options.compression.names):
        built_in |= dict.fromkeys(("EROFS_FS_ZIP", CONFIG[name]), f"the root file system is compressed by {name}")
    if options.overlays:
        features.append(("OVERLAY_FS", "overlay", "places that can be written are overlays"))
    if any(overlay.kept == "persistent" for overlay in options.overlays):
        features.append(("EXT4_FS", "ext4", "what is written is kept on ext4"))
    for option, module, reason in features:
        kernel.check_feature(option, module, reason)
    for option, reason in built_in.items():
        kernel.check_builtin(option, reason)
    unknown = f"the image has no configuration of the kernel {version}: whether it has all that is needed shows at boot"
    notes = [unknown] if kernel.options is None else []
    return _support(kernel, (*HELPFUL, *(module for _, module, _ in features)), notes)


def _support(kernel: KernelFiles, wanted: Iterable[str], notes: Sequence[str]) -> KernelSupport:
    modules = tuple(
        kernel.directory + b"/" + path
        for path in kernel.in_order(module for module in wanted if module not in kernel.builtin)
    )
    file_backed = None if kernel.options is None else kernel.options.get("EROFS_FS_BACKED_BY_FILE", "n") == "y"
    return KernelSupport(modules, file_backed, tuple(notes))


def version_in(image: bytes) -> str | None:
    """Return the version that an x86 kernel says it is; None of another. Documentation/arch/x86/boot.rst: header."""
    if image[0x202:0x206] != b"HdrS":
        return None
    at = 0x200 + int.from_bytes(image[0x20E:0x210], "little")
    found = re.match(rb"[0-9A-Za-z][0-9A-Za-z._+~-]{0,127}(?=[ \0])", image[at : at + 129])
    return found[0].decode() if found else None


def builtin_modules(tree: Directory, read: Read, version: str) -> frozenset[str]:
    """Return the names of what could be modules and is part of the kernel."""
    path = MODULES + b"/" + version.encode() + b"/modules.builtin"
    return frozenset(_name(line) for line in (read_file(tree, read, path, MAX_MODULES_FILE) or b"").split())


def module_name(path: bytes) -> str:
    """Return a module's name as the kernel shows it: `erofs` of `…/erofs.ko.xz`, with `_` for `-`."""
    return path.rpartition(b"/")[2].partition(b".ko")[0].replace(b"-", b"_").decode(errors="replace")


_name = module_name


def _read_config(tree: Directory, read: Read, directory: bytes, version: str) -> dict[str, str] | None:
    for path in (b"boot/config-" + version.encode(), directory + b"/config", directory + b"/build/.config"):
        content = read_file(tree, read, path, kconfig.MAX_SIZE)
        if content is not None:
            try:
                return kconfig.parse(content)
            except FormatError as error:
                raise FormatError(f"/{show(path)}: {error.message}") from error
    return None


def _parse_dependencies(data: bytes) -> dict[str, tuple[bytes, Sequence[bytes]]]:
    """Return module → (its path, the paths of those it needs) of a modules.dep, beneath /usr/lib/modules/VERSION."""
    dependencies: dict[str, tuple[bytes, Sequence[bytes]]] = {}
    for line in data.splitlines():
        path, colon, needs = line.partition(b":")
        if colon:
            dependencies[_name(path)] = (path, needs.split())
    return dependencies
