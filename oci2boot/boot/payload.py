"""What the boot loader starts, in the local flow: a UKI of the image's kernel, initramfs and stub."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from oci2boot.boot import closing, discover, glue
from oci2boot.boot.budget import Sizes, check_budget, sizes_of_uki
from oci2boot.boot.inherited import find_inherited
from oci2boot.boot.initrd import InitrdName, plan_initrd
from oci2boot.boot.names import LINUX
from oci2boot.boot.promise import RootPromise
from oci2boot.boot.told import pack_told
from oci2boot.boot.uki import UkiParts, build_uki, check_machines, verify_uki
from oci2boot.errors import ImageError, NoStubError
from oci2boot.formats import cpio, os_release
from oci2boot.tree.files import Read, find_file, read_content, read_file
from oci2boot.tree.model import Directory, File

MAX_KERNEL: Final = 512 << 20
MAX_INITRAMFS: Final = 1 << 30
MAX_EFI_PROGRAM: Final = 64 << 20

STUB_DIRECTORY: Final = b"usr/lib/systemd/boot/efi/"
EFI_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"x86_64": "x64", "aarch64": "aa64", "riscv64": "riscv64", "i686": "ia32", "loongarch64": "loongarch64"}
)
"""Machine, as in a kernel's name for it, → the firmware's."""
OCI_MACHINES: Final[Mapping[str, str]] = MappingProxyType(
    {"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64", "386": "i686", "loong64": "loongarch64"}
)
PACKAGES: Final = "Debian: systemd-boot-efi; Fedora: systemd-boot-unsigned; Arch: systemd"
MICROCODE: Final = (b"boot/amd-ucode.img", b"boot/intel-ucode.img")

_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")
"""systemd-boot allows `+` as well, where it begins a boot counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadOptions:
    architecture: str
    """The image's, as OCI says it: `amd64`."""
    version: str
    """Orders this UKI among its like, newest highest: a version or a time stamp, no digest."""
    kernel_version: str | None = None
    arguments: tuple[str, ...] = ()
    """The user's kernel arguments."""
    size_limit: int | None = None
    """Bytes of all that the boot loader loads."""
    initrd: InitrdName = "image"
    initrd_tools: tuple[str, ...] = ()
    """Programs of the image that a built-in initramfs has besides, for debugging."""
    initramfs: bytes | None = None
    """Takes the place of the one that the image brings."""
    stub: bool = True
    """Whether a UKI is built; without one, kernel and initramfs stay files."""
    devicetree: str | None = None
    """Of a boot chain without UKI: a file of the image, as `devicetree.find_devicetree` takes it."""
    debug_shell: bool = False
    """Leave the image's initramfs the shell that it gives when something fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadPlan:
    """Everything but the UKI's bytes, which ukify or `build_uki` makes of `stub` and `parts`."""

    stub: bytes
    parts: UkiParts
    told: bool
    """Whether the last part of the initramfs says what is promised."""
    name: str
    glue: glue.Glue
    notes: tuple[str, ...]
    size_limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootPayload:
    uki: bytes
    uki_path: str
    """On the ESP."""
    cmdline: str
    kernel_version: str
    glue: str
    """Whose code in the initramfs keeps the promise."""
    sizes: Sizes
    notes: tuple[str, ...]


def plan_payload(tree: Directory, read: Read, promise: RootPromise, options: PayloadOptions) -> PayloadPlan:
    """Gather what boots the image: `tree` is the merged one, its /boot not yet emptied."""
    machine = machine_of(options.architecture)
    kernels = discover.find_kernels(tree)
    inherited = None if kernels else find_inherited(tree, read, options.kernel_version)
    kernel = discover.choose_kernel(
        [inherited.kernel] if inherited else kernels, options.kernel_version, initramfs=options.initrd == "image"
    )
    initrds, added = _initramfs(tree, read, kernel, promise, options)
    told, why = promise.told(added)
    told_archive = pack_told(told, initrds) if told else b""
    image_words = list(inherited.words) if inherited else discover.read_arguments(tree, read, machine)
    cmdline = promise.build_cmdline(image_words, options.arguments, added)
    release, name = _release(tree, read, options.version)
    stub = _find_stub(tree, read, machine) if options.stub else b""
    parts = UkiParts(
        kernel=read_content(kernel.image, read, kernel.image_path, MAX_KERNEL),
        initrds=(*initrds, told_archive) if told else initrds,
        cmdline=cmdline,
        os_release=release,
        uname=kernel.version,
        microcode=inherited.microcode if inherited else _microcode(tree, read),
    )
    if stub:
        check_machines(stub, parts.kernel, machine)
    ours = _paths(added.archive + bytes(-len(added.archive) % 4) + told_archive)
    if ours and not ours <= _paths(parts.initrd):
        raise ImageError("the kernel would not unpack the glue that follows the image's initramfs")
    notes = (*added.notes, *why)
    if inherited:
        notes += (f"kernel, initramfs and arguments are those of /{inherited.uki}: the image has no other",)
    return PayloadPlan(
        stub=stub,
        parts=parts,
        told=bool(told),
        name=name,
        glue=added,
        notes=notes,
        size_limit=options.size_limit,
    )


def _initramfs(
    tree: Directory, read: Read, kernel: discover.Kernel, promise: RootPromise, options: PayloadOptions
) -> tuple[tuple[bytes, ...], glue.Glue]:
    """Return the archives that make up the initramfs, and what was added to the image's."""
    support = promise.check_kernel(tree, read, kernel.version)
    if options.initrd == "builtin":
        built = plan_initrd(tree, read, kernel.version, promise.mode, promise.files(), options.initrd_tools)
        notes = (*support.notes, *built.notes)
        added = glue.Glue(
            brought=None,
            archive=b"",
            arguments=(*built.arguments, *closing.words()),
            modules=built.modules,
            programs=built.programs,
            notes=notes,
            configuration=built.configuration,
        )
        return (built.archive,), added
    initramfs = options.initramfs
    if initramfs is None:
        assert kernel.initramfs
        initramfs = read_content(kernel.initramfs, read, kernel.initramfs_path, MAX_INITRAMFS)
    members = cpio.read(initramfs, glue.keep)
    added = promise.plan_glue(tree, read, members, support)
    if not options.debug_shell:
        added = closing.close(added, members)
    archives = (initramfs, added.archive) if added.archive else (initramfs,)
    return archives, replace(added, notes=(*support.notes, *added.notes))


def finish_payload(plan: PayloadPlan, uki: bytes | None = None) -> BootPayload:
    """Check the UKI that ukify built, or build it here, and account for its size."""
    if uki is None:
        uki = build_uki(plan.stub, plan.parts)
    verify_uki(uki, plan.stub, plan.parts)
    sizes = sizes_of_uki(uki)
    notes = (*plan.notes, *check_budget(sizes, plan.size_limit))
    return BootPayload(
        uki=uki,
        uki_path=f"{LINUX}/{plan.name}.efi",
        cmdline=plan.parts.cmdline,
        kernel_version=plan.parts.uname,
        glue=plan.glue.brought or "oci2boot",
        sizes=sizes,
        notes=notes,
    )


def _paths(archive: bytes) -> Set[bytes]:
    return cpio.read(archive, lambda _: False).keys()


def machine_of(architecture: str) -> str:
    """Return the kernel's word for an architecture of OCI's."""
    machine = OCI_MACHINES.get(architecture)
    if machine is None:
        raise ImageError(f"the image is for {architecture}: no EFI boot loader for it is known")
    return machine


def _release(tree: Directory, read: Read, version: str) -> tuple[bytes, str]:
    """Return `.osrel`, whose IMAGE_VERSION orders the boot menu, and the UKI's name, which orders it without that."""
    content = discover.read_os_release(tree, read)
    if content is None:
        raise ImageError("the image has no os-release file", hint="systemd boots no root file system without one")
    fields = os_release.parse(content)
    image_id = fields.get("IMAGE_ID") or fields.get("ID") or "linux"
    name = "_".join(_NOT_IN_NAME.sub("-", part).strip("-.") or "0" for part in (image_id, version))
    return os_release.with_fields(content, {"IMAGE_ID": image_id, "IMAGE_VERSION": version}), name


def _find_stub(tree: Directory, read: Read, machine: str) -> bytes:
    name = f"linux{EFI_NAMES[machine]}.efi.stub"
    try:
        return find_efi_program(tree, read, name, "systemd-stub")
    except ImageError as error:
        raise NoStubError(error.message, hint=error.hint) from error


def find_efi_program(tree: Directory, read: Read, name: str, what: str) -> bytes:
    content = read_file(tree, read, STUB_DIRECTORY + name.encode(), MAX_EFI_PROGRAM)
    if content is None:
        raise ImageError(
            f"the image has no {what}: /{STUB_DIRECTORY.decode()}{name} is missing",
            hint=f"install it in the image ({PACKAGES})",
        )
    return content


def _microcode(tree: Directory, read: Read) -> bytes:
    files: list[tuple[bytes, File | None]] = [(path, find_file(tree, path)) for path in MICROCODE]
    parts = [read_content(file, read, path, MAX_INITRAMFS) for path, file in files if file]
    return b"".join(piece for part in parts for piece in (part, bytes(-len(part) % 4)))
