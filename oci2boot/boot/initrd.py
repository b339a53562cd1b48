"""The built-in initramfs: a small initramfs made of the image's own files, for an image that brings none that fits.

It holds a shell, the few programs that `initramfs/init` calls, their libraries, and the modules for disks and for the
file systems of one mode. modprobe finds the drivers, so there is no udev, and no firmware.
"""

import gzip
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import zstandard

from oci2boot.boot.configuration import RootConfiguration, configuration_files
from oci2boot.boot.glue import (
    MAX_MODULE,
    PLACE,
    PROGRAMS,
    ROOT_LABEL,
    SETUP_ROOT,
    Archive,
    add_own,
    check_growth,
    unpack_module,
)
from oci2boot.boot.kernel import MAX_MODULES_FILE, KernelFiles, module_name, read_kernel
from oci2boot.boot.programs import MAX_PROGRAM, PROGRAM_DIRECTORIES, find_program, libraries
from oci2boot.errors import ImageError
from oci2boot.formats import cpio, kmod_index
from oci2boot.rootfs.dmverity import Overlay
from oci2boot.tree.files import Read, find_file, list_directory, read_content, read_file
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, Symlink

BootMode = Literal["composefs", "verity", "erofs"]
"""What the initramfs can boot, and nothing else: `erofs` is a root file system that nothing guards."""
InitrdName = Literal["image", "builtin", "dracut"]
"""The initramfs that the image brings, one made of the image's files, or one that the image's dracut makes now."""

GOAL: Final = 10 << 20
"""Bytes of an initramfs for dm-verity, without firmware."""
MAX_ALIAS: Final = 400

MODE_FILE: Final = PLACE + b"mode"
OVERLAYS_FILE: Final = PLACE + b"overlays"
SIGNATURE_REQUIRED: Final = PLACE + b"verity-signature-required"
VERITY_DEBUG: Final = PLACE + b"verity-debug"
"""What fails verification may be ignored: the command line alone cannot ask for that."""

PACKAGES: Final[Mapping[str, str]] = {
    "veritysetup": "Debian: cryptsetup-bin; Fedora: veritysetup; Arch: cryptsetup",
    "modprobe": "kmod",
    "blkid": "util-linux",
    "switch_root": "util-linux",
    "mount": "Debian: mount; others: util-linux",
    "umount": "Debian: mount; others: util-linux",
}
_PROGRAMS: Final = (
    *(name.decode() for name in PROGRAMS),
    *("sh", "switch_root", "blkid", "modprobe", "sleep", "chroot", "base64", "tr"),
)
_OPTIONAL: Final = ("losetup",)
"""For live ISOs in optical drives."""
_LOADED: Final[Mapping[BootMode, Sequence[str]]] = {
    "composefs": ("loop", "erofs", "overlay", "ext4"),
    "verity": ("dm_mod", "dm_verity", "erofs", "overlay", "ext4"),
    "erofs": ("erofs", "overlay", "ext4"),
}
"""Loaded in any case; the drivers of disks are found by what the hardware calls itself."""
_HARDWARE: Final = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "nvme", "ahci", "ata_piix", "ata_generic"),
    *("sd_mod", "sr_mod", "loop", "usb_storage", "uas", "xhci_pci", "ehci_pci", "ohci_pci", "uhci_hcd"),
    *("mmc_block", "sdhci_pci", "sdhci_acpi", "hv_vmbus", "hv_storvsc", "pci_hyperv", "xen_blkfront", "vmw_pvscsi"),
    *("crc32c_generic", "crc32c_intel", "sha256_generic", "sha256_ssse3", "sha512_generic", "sha512_ssse3"),
)
_LINKED: Final = (b"", b"usr/")
"""Where a distribution has symlinks for `bin`, `lib64` and their like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initrd:
    archive: bytes
    """Compressed; the same image gives the same bytes."""
    arguments: tuple[str, ...]
    """Kernel arguments by which it finds the disk."""
    programs: tuple[str, ...]
    modules: tuple[str, ...]
    notes: tuple[str, ...]
    configuration: RootConfiguration
    """Of setup-root; to be checked against the composefs argument, as `glue.Glue.configuration` is."""


def overlays_file(overlays: Iterable[Overlay]) -> bytes:
    """Return the list that setup-overlays reads, for `OVERLAYS_FILE`: `/etc persistent`, a line for each."""
    return "".join(f"{overlay.path} {overlay.kept}\n" for overlay in overlays).encode()


def plan_initrd(
    tree: Directory,
    read: Read,
    version: str,
    mode: BootMode,
    files: Mapping[bytes, bytes] | None = None,
    tools: Sequence[str] = (),
) -> Initrd:
    """Return an initramfs for the kernel of this version; `tree` is the merged one, its /boot not yet emptied.

    `files` are put in as they are: `OVERLAYS_FILE` (needed in the modes verity and erofs, empty for no overlay),
    `SIGNATURE_REQUIRED` (its content does not matter) where a root hash without signature may not boot, `etc/veritytab`
    where the command line has no root hash. `tools` are more programs of the image, for debugging.

    The kernel is to have passed `check_kernel` or `check_verity_kernel`. Raises `ImageError` for a program that is
    not in the image.
    """
    files = files or {}
    assert mode == "composefs" or OVERLAYS_FILE in files
    kernel = read_kernel(tree, read, version)
    archive = Archive(_links(tree))
    for path, link in archive.below.items():
        archive.add(cpio.symlink(path, link.content or b""))
    for path in (b"dev", b"proc", b"sys", b"run", b"sysroot", b"tmp"):
        archive.add(cpio.directory(path))
    archive.add(cpio.symlink(b"init", PLACE + b"init"))
    add_own(archive, ("init", "setup-overlays", *SETUP_ROOT))
    archive.add(cpio.file(MODE_FILE, mode.encode() + b"\n"))
    for path, content in files.items():
        archive.add(cpio.file(path, content))
    configuration = RootConfiguration()
    if mode == "composefs":
        for path, content in configuration_files(tree, read):
            configuration = configuration.with_file(path, content)
            archive.add(cpio.file(path, content))
    optional = [name for name in _OPTIONAL if find_program(tree, name.encode())]
    needed = ["veritysetup"] if mode == "verity" else []
    programs = tuple(dict.fromkeys([*_PROGRAMS, *needed, *optional, *tools]))
    _add_programs(archive, tree, read, programs)
    modules = _add_modules(archive, tree, read, kernel, _LOADED[mode])
    packed = _compress(archive.pack(), kernel)
    persistent = mode == "composefs" or b" persistent\n" in files[OVERLAYS_FILE]
    notes = list(check_growth(tree)) if persistent else []
    if len(packed) > GOAL:
        notes.append(f"the initramfs has {len(packed) / 2**20:.1f} MiB, more than {GOAL >> 20}")
    arguments = (f"root=LABEL={ROOT_LABEL}", "rw") if mode == "composefs" else ()
    return Initrd(
        archive=packed,
        arguments=arguments,
        programs=programs,
        modules=modules,
        notes=tuple(notes),
        configuration=configuration,
    )


def _links(tree: Directory) -> dict[bytes, cpio.Found]:
    return {
        above + name: cpio.Found(stat.S_IFLNK | 0o777, len(inode.target), inode.target)
        for above in _LINKED
        for name, inode in list_directory(tree, above)
        if isinstance(inode, Symlink) and name.startswith((b"bin", b"sbin", b"lib"))
    }


def _add_programs(archive: Archive, tree: Directory, read: Read, names: Iterable[str]) -> None:
    """Add each at its own path, and a symlink where the name is another, as those of busybox and kmod are."""
    paths = []
    for name in names:
        program = find_program(tree, name.encode())
        if not program or (name in ("blkid", "switch_root") and program[0].endswith(b"busybox")):
            why = ", and busybox's will not do" if program else ""
            package = PACKAGES.get(name)
            raise ImageError(
                f"the image has no program {name}, which its initramfs needs{why}",
                hint=f"install it in the image ({package})" if package else "install it in the image",
            )
        path, file = program
        paths.append(path)
        archive.add(cpio.file(path, read_content(file, read, path, MAX_PROGRAM), 0o755))
        for directory in PROGRAM_DIRECTORIES:
            asked = directory + b"/" + name.encode()
            if archive.place(asked) != path and look_up(tree, asked):
                archive.add(cpio.symlink(asked, b"/" + path))
    for path, content in libraries(tree, read, paths).items():
        archive.add(cpio.file(path, content, 0o755))


def _add_modules(
    archive: Archive, tree: Directory, read: Read, kernel: KernelFiles, loaded: Sequence[str]
) -> tuple[str, ...]:
    """Add the modules unpacked, since the whole archive is compressed, and what modprobe finds them by."""
    soft = _lines(tree, read, kernel, "softdep")
    wanted = [name for name in (*loaded, *_HARDWARE) if name not in kernel.builtin]
    wanted += [_plain(word) for words in soft if _plain(words[0]) in wanted for word in words[1:]]
    paths = kernel.in_order(wanted)
    kept: dict[str, bytes] = {}
    for path in paths:
        file = find_file(tree, kernel.directory + b"/" + path)
        if not file:
            raise ImageError(f"the kernel module {module_name(path)} is not in the image, but modules.dep names it")
        kept[module_name(path)] = _unpacked(path)
        content = unpack_module(read_content(file, read, path, MAX_MODULE), path)
        archive.add(cpio.file(kernel.directory + b"/" + _unpacked(path), content))
    needs = [(name, kernel.dependencies[name]) for name in kernel.dependencies if name in kept]
    dependencies = [
        (name.encode(), b" ".join([_unpacked(path) + b":", *map(_unpacked, below)])) for name, (path, below) in needs
    ]
    order = {name: number for number, (name, _) in enumerate(needs)}
    aliases = [
        (words[0], _plain(words[1]))
        for words in _lines(tree, read, kernel, "alias")
        if len(words) == 2 and _plain(words[1]) in kept and len(words[0]) <= MAX_ALIAS and words[0].isascii()
    ]
    texts = {
        "dep": b"".join(line + b"\n" for _, line in dependencies),
        "alias": b"".join(b"alias %s %s\n" % (alias, name.encode()) for alias, name in aliases),
        "softdep": b"".join(b"softdep %s\n" % b" ".join(words) for words in soft if _plain(words[0]) in kept),
        "builtin": b"".join(b"kernel/%s.ko\n" % name.encode() for name in sorted(kernel.builtin)),
        "dep.bin": kmod_index.write((name, line, order[name.decode()]) for name, line in dependencies),
        "alias.bin": kmod_index.write((_normal(alias), name.encode(), order[name]) for alias, name in aliases),
        "builtin.bin": kmod_index.write((name.encode(), b"", 0) for name in sorted(kernel.builtin) if name.isascii()),
        "symbols.bin": kmod_index.write([]),
        "builtin.alias.bin": kmod_index.write([]),
    }
    for suffix, content in texts.items():
        archive.add(cpio.file(kernel.directory + b"/modules." + suffix.encode(), content))
    archive.add(
        cpio.file(b"usr/lib/oci2boot/modules", "".join(f"{name}\n" for name in loaded if name in kept).encode())
    )
    return tuple(kept)


def _lines(tree: Directory, read: Read, kernel: KernelFiles, name: str) -> list[list[bytes]]:
    """Return the words behind the keyword of each line of `modules.NAME`, which also is the keyword; modprobe.d(5)."""
    content = read_file(tree, read, kernel.directory + f"/modules.{name}".encode(), MAX_MODULES_FILE) or b""
    lines = (line.split() for line in content.splitlines())
    return [words[1:] for words in lines if len(words) > 1 and words[0] == name.encode()]


def _plain(word: bytes) -> str:
    return word.replace(b"-", b"_").decode(errors="replace")


def _normal(alias: bytes) -> bytes:
    """Return an alias as the index has it: `_` for `-`, except in a range in brackets."""
    pieces = []
    for number, piece in enumerate(alias.split(b"[")):
        inside, bracket, rest = piece.partition(b"]") if number else (b"", b"", piece)
        pieces.append(inside + bracket + rest.replace(b"-", b"_"))
    return b"[".join(pieces)


def _unpacked(path: bytes) -> bytes:
    return path.partition(b".ko")[0] + b".ko"


def _compress(data: bytes, kernel: KernelFiles) -> bytes:
    if (kernel.options or {}).get("RD_ZSTD") == "y":
        return zstandard.ZstdCompressor(level=12, write_checksum=False).compress(data)
    return gzip.compress(data, compresslevel=6, mtime=0)
