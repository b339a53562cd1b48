"""An extra initramfs archive, for an image whose own does not know composefs: setup-root, its wiring, what it needs.

The kernel unpacks it over the image's initramfs, and it replaces nothing there but initramfs-tools' ORDER files, which
it continues.
"""

import bz2
import gzip
import io
import lzma
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Final, Literal

import zstandard

from oci2boot.boot import peer_units
from oci2boot.boot.configuration import RootConfiguration, configuration_files
from oci2boot.boot.kernel import KernelSupport, module_name
from oci2boot.boot.programs import find_program, libraries
from oci2boot.errors import FormatError, ImageError, LimitError
from oci2boot.formats import cpio
from oci2boot.tree.files import Read, find_file, read_content
from oci2boot.tree.model import Directory

MAX_MODULE: Final = 64 << 20

ROOT_LABEL: Final = "oci2boot"
"""Of the root file system, for an initramfs that does not find it by partition type; ext4 has 16 bytes for it."""

PLACE: Final = b"usr/lib/oci2boot/"
SETUP_ROOT: Final = ("setup-root", "grow", "witness-sha256", "witness-sha512")
"""The files by which a composefs image becomes the root file system."""
OWN: Final = PLACE + b"setup-root"
GLUE: Final[Mapping[bytes, str]] = {
    OWN: "oci2boot",
    b"usr/bin/composefs-setup-root": "composefs-setup-root",
    b"usr/lib/composefs/composefs-setup-root": "composefs-setup-root",
    b"usr/libexec/composefs-setup-root": "composefs-setup-root",
    b"usr/lib/systemd/system/composefs-setup-root.service": "composefs-setup-root",
    b"usr/lib/bootc/initramfs-setup": "bootc",
    b"usr/lib/systemd/system/bootc-root-setup.service": "bootc",
}
"""Files of an initramfs that turn a composefs argument into a root file system, and whose they are."""

PROGRAMS: Final = (b"mount", b"umount", b"mkdir", b"cat", b"ln")
"""What setup-root cannot do without; `chroot` lets the root file system grow."""

_UNIT: Final = b"usr/lib/systemd/system/"
_PARAM: Final = b"[ -e /conf/param.conf ] && . /conf/param.conf\n"

Kind = Literal["systemd", "initramfs-tools", "mkinitcpio"]
"""The last is that with busybox for its init, which is known only where it brought our hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glue:
    brought: str | None
    """Whose glue the image's initramfs has already; then no other is added."""
    archive: bytes = b""
    arguments: tuple[str, ...] = ()
    """Kernel arguments by which this initramfs finds the disk, and mounts it for writing."""
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    configuration: RootConfiguration = field(default_factory=RootConfiguration)


@dataclass(slots=True)
class Archive:
    """Members on their way into an archive that is unpacked over `below`."""

    below: Mapping[bytes, cpio.Found]
    members: dict[bytes, cpio.Member] = field(default_factory=dict)

    def has(self, path: bytes) -> bool:
        return self.place(path) in self.below

    def place(self, path: bytes) -> bytes:
        """Follow the symlinks of directories, such as `lib` of a merged /usr: one must not become a directory again."""
        done: list[bytes] = []
        names = path.split(b"/")
        for index, name in enumerate(names):
            done.append(name)
            found = self.below.get(b"/".join(done)) if index + 1 < len(names) else None
            if found and stat.S_ISLNK(found.mode) and found.content:
                target = found.content
                done = target.lstrip(b"/").split(b"/") if target.startswith(b"/") else [*done[:-1], *target.split(b"/")]
        return b"/".join(name for name in done if name not in (b"", b"."))

    def add(self, member: cpio.Member) -> None:
        path = self.place(member.path)
        parent = path.rpartition(b"/")[0]
        if parent and parent not in self.below and parent not in self.members:
            self.add(cpio.directory(parent))
        self.members[path] = cpio.Member(path, member.mode, member.content)

    def pack(self) -> bytes:
        return cpio.write(member for _, member in sorted(self.members.items()))


def keep(path: bytes) -> bool:
    """Say which files of the image's initramfs `plan_glue` and `closing` want to read."""
    return (
        (path.startswith(b"scripts/") and path.endswith(b"/ORDER"))
        or path in (b"scripts/functions", b"init_functions")
        or (path.startswith(b"etc/systemd/system/") and path.endswith(b".service"))
        or bool(peer_units.UNIT.fullmatch(path))
    )


def brought_by(initramfs: Mapping[bytes, cpio.Found]) -> str | None:
    """Return whose glue an initramfs has."""
    for path, brought in GLUE.items():
        if path in initramfs or path.removeprefix(b"usr/") in initramfs:
            return brought
    return None


def ways_around(initramfs: Mapping[bytes, cpio.Found]) -> Iterator[str]:
    """Say how the boot goes on although the glue of an initramfs has verified nothing."""
    units = peer_units.texts_of(initramfs)
    brought = brought_by(initramfs)
    if brought not in (None, "oci2boot") and not units:
        yield f"no unit that is known starts the glue of {brought}: where it fails, anything may follow"
    for unit, text in units.items():
        yield from peer_units.ways_around(unit, text)


def plan_glue(tree: Directory, read: Read, initramfs: Mapping[bytes, cpio.Found], support: KernelSupport) -> Glue:
    """Return what to add to this initramfs of the image (as `cpio.read` gives it, with `keep`)."""
    if brought := brought_by(initramfs):
        return _completed(brought, initramfs)
    kind = kind_of(initramfs)
    if kind == "mkinitcpio":
        raise _unknown()
    archive = Archive(initramfs)
    add_own(archive, SETUP_ROOT)
    configuration = RootConfiguration()
    for path, content in configuration_files(tree, read):
        configuration = configuration.with_file(path, content)
        archive.add(cpio.file(path, content))
    programs, notes = add_programs(archive, tree, read)
    modules = add_modules(archive, tree, read, support)
    if kind == "systemd":
        wire_systemd(archive, [b"oci2boot-setup-root.service"], modules)
    else:
        _wire_initramfs_tools(archive, modules=bool(modules))
    return Glue(
        brought=None,
        archive=archive.pack(),
        arguments=_arguments(archive, kind),
        modules=modules,
        programs=programs,
        notes=notes,
        configuration=configuration,
    )


def _completed(brought: str, initramfs: Mapping[bytes, cpio.Found]) -> Glue:
    """Add to the glue that an initramfs has what it leaves open."""
    archive = Archive(initramfs)
    notes = []
    units = peer_units.texts_of(initramfs)
    for unit, text in units.items():
        if ways := list(peer_units.ways_around(unit, text)):
            name = unit.encode()
            archive.add(cpio.file(_UNIT + name + b".d/" + peer_units.NAME.encode(), peer_units.CLOSING))
            archive.add(cpio.symlink(_UNIT + b"initrd-root-fs.target.requires/" + name, b"../" + name))
            notes.append(f"{'; '.join(ways)}: a drop-in is added that closes it")
    if not units:
        notes += ways_around(initramfs)
    return Glue(
        brought=brought,
        archive=archive.pack() if archive.members else b"",
        arguments=_arguments(archive, kind_of(initramfs)),
        notes=tuple(notes),
    )


def _arguments(archive: Archive, kind: Kind) -> tuple[str, ...]:
    # Without `rw` systemd-gpt-auto-generator has / remounted for writing, which the verified overlay refuses.
    generator = b"usr/lib/systemd/system-generators/systemd-gpt-auto-generator"
    if kind == "systemd" and not archive.has(generator):
        return "rw", f"root=LABEL={ROOT_LABEL}"
    return ("rw",)


def script(name: str) -> bytes:
    return resources.files("oci2boot.initramfs").joinpath(name).read_bytes()


def add_own(archive: Archive, names: Iterable[str]) -> None:
    """Add scripts of ours, which can be run, and the files that they read."""
    for name in names:
        content = script(name)
        archive.add(cpio.file(PLACE + name.encode(), content, 0o755 if content.startswith(b"#!") else 0o644))


def kind_of(initramfs: Mapping[bytes, cpio.Found]) -> Kind:
    """Raises `ImageError` for an initramfs of another kind."""
    if b"usr/lib/systemd/systemd" in initramfs or b"lib/systemd/systemd" in initramfs:
        return "systemd"
    if b"scripts/functions" in initramfs and b"scripts/local" in initramfs:
        return "initramfs-tools"
    if b"init_functions" in initramfs and b"hooks" in initramfs:
        return "mkinitcpio"
    raise _unknown()


def _unknown() -> ImageError:
    return ImageError(
        "the image's initramfs has no composefs support, and is neither systemd's nor that of initramfs-tools",
        hint="install oci2boot's dracut module or mkinitcpio hook in the image and have its initramfs built again",
    )


def wire_systemd(archive: Archive, units: Sequence[bytes], modules: Sequence[str]) -> None:
    """Add units that check or set up the root file system, and the one that loads `modules`."""
    for unit in units:
        # .requires: with the unit masked on the command line, the target fails too, and nothing is switched to.
        archive.add(cpio.file(_UNIT + unit, script(f"systemd/{unit.decode()}")))
        archive.add(cpio.symlink(_UNIT + b"initrd-root-fs.target.requires/" + unit, b"../" + unit))
    if modules:
        name = b"oci2boot-modules.service"
        archive.add(cpio.file(_UNIT + name, script("systemd/oci2boot-modules.service")))
        archive.add(cpio.symlink(_UNIT + b"sysinit.target.wants/" + name, b"../" + name))


def _wire_initramfs_tools(archive: Archive, *, modules: bool) -> None:
    archive.add(cpio.file(b"scripts/local-bottom/oci2boot", script("initramfs-tools/local-bottom/oci2boot"), 0o755))
    archive.add(cpio.file(b"conf/conf.d/oci2boot", f"ROOT=LABEL={ROOT_LABEL}\n".encode()))
    lines = {b"scripts/local-bottom/ORDER": b'/scripts/local-bottom/oci2boot "$@"\n' + _PARAM}
    if modules:
        lines[b"scripts/init-premount/ORDER"] = b"/" + OWN + b" modules\n"
    for path, line in lines.items():
        order = archive.below.get(path)
        archive.add(cpio.file(path, (order.content if order and order.content else b"") + line))


def add_programs(
    archive: Archive, tree: Directory, read: Read, more: Sequence[bytes] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Add what setup-root calls, and `more`, where the initramfs lacks it; return their names, and notes."""
    # klibc's mount and umount know neither loop devices nor lazy unmounting.
    klibc = any(path.rpartition(b"/")[2].startswith(b"klibc-") for path in archive.below)
    busybox = any(archive.has(directory + b"/busybox") for directory in (b"usr/bin", b"bin", b"usr/sbin", b"sbin"))
    wanted: dict[bytes, bytes] = {}
    notes = []
    for name in (*PROGRAMS, *more, b"chroot"):
        own = any(archive.has(directory + b"/" + name) for directory in (b"usr/bin", b"usr/sbin", b"bin", b"sbin"))
        if own and not (name in (b"mount", b"umount") and klibc and not busybox):
            continue
        program = find_program(tree, name)
        if program:
            wanted[name] = program[0]
            archive.add(
                cpio.file(
                    b"usr/lib/oci2boot/bin/" + name, read_content(program[1], read, program[0], MAX_MODULE), 0o755
                )
            )
        elif name == b"chroot":
            notes.append("the root file system will not grow: neither the initramfs nor the image has chroot")
        else:
            raise ImageError(
                f"neither the initramfs nor the image has the program {name.decode()}", hint="install it in the image"
            )
    for path, content in libraries(tree, read, wanted.values()).items():
        if not archive.has(path):
            archive.add(cpio.file(path, content, 0o755))
    return tuple(name.decode() for name in wanted), (*notes, *check_growth(tree))


def check_growth(tree: Directory) -> tuple[str, ...]:
    """Say what an image lacks for its root file system to grow to the disk on first boot."""
    lacks = [name.decode() for name in (b"sfdisk", b"partx") if not find_program(tree, name)]
    if not find_file(tree, b"usr/lib/systemd/systemd-growfs") and not find_program(tree, b"resize2fs"):
        lacks.append("resize2fs")
    if not lacks:
        return ()
    return (f"the root file system will not grow to the disk on first boot: the image has no {' and no '.join(lacks)}",)


def add_modules(archive: Archive, tree: Directory, read: Read, support: KernelSupport) -> tuple[str, ...]:
    """Add the modules that the initramfs lacks, unpacked (not every insmod can), and the order to load them in."""
    there = {module_name(path) for path in archive.below if b".ko" in path}
    added: list[str] = []
    for path in support.modules:
        name = module_name(path)
        if name in there:
            continue
        file = find_file(tree, path)
        if not file:
            raise ImageError(f"the kernel module {name} is not in the image, but modules.dep names it")
        content = unpack_module(read_content(file, read, path, MAX_MODULE), path)
        archive.add(cpio.file(f"usr/lib/oci2boot/modules.d/{name}.ko".encode(), content))
        added.append(name)
    if added:
        names = [module_name(path) for path in support.modules]
        order = "".join(f"/usr/lib/oci2boot/modules.d/{name}.ko\n" if name in added else f"{name}\n" for name in names)
        archive.add(cpio.file(b"usr/lib/oci2boot/modules", order.encode()))
    return tuple(added)


def unpack_module(data: bytes, path: bytes) -> bytes:
    suffix = path.rpartition(b".")[2]
    unpackers: Mapping[bytes, Callable[[bytes], bytes]] = {
        b"xz": lambda packed: lzma.LZMADecompressor().decompress(packed, MAX_MODULE + 1),
        b"zst": lambda packed: zstandard.ZstdDecompressor().stream_reader(packed).read(MAX_MODULE + 1),
        b"gz": lambda packed: gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MAX_MODULE + 1),
        b"bz2": lambda packed: bz2.BZ2Decompressor().decompress(packed, MAX_MODULE + 1),
    }
    try:
        content = unpackers[suffix](data) if suffix in unpackers else data
    except (lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
        raise FormatError(f"the kernel module {module_name(path)} is damaged: {error}") from error
    if len(content) > MAX_MODULE:
        raise LimitError(f"the kernel module {module_name(path)} has more than {MAX_MODULE} bytes")
    if content[:4] != b"\x7fELF":
        raise FormatError(f"the kernel module {module_name(path)} is no ELF file")
    return content
