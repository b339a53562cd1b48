"""What the user asked for, as values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oci2boot.boot.dracut import DracutOptions
from oci2boot.boot.initrd import InitrdName
from oci2boot.boot.loader import TIMEOUT, EnrollMode, LoaderName
from oci2boot.boot.sign import SignTool
from oci2boot.digest import Hash
from oci2boot.errors import FormatError
from oci2boot.formats.file_contexts.specs import Rules
from oci2boot.oci.reference import DirectoryReference, Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.verity import VerityOptions
from oci2boot.sysroot.first_boot import FirstBoot
from oci2boot.target.formats import DiskFormat
from oci2boot.target.luks import Secret
from oci2boot.tree.prepare import Xattrs

ErofsVersion = Literal[0, 1, 2]
KargStyle = Literal["composefs", "digest"]
FlowChoice = Literal["auto", "sealed", "vendor", "local", "type1"]
"""`auto` is sealed where a UKI of the image carries a composefs argument, else local; never what nothing signs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOptions:
    """What decides a digest besides the image: recorded wherever the digest is."""

    bootable: bool = True
    """The canonical bootable form, else the plain one of a container."""
    selinux_rules: Rules = "libselinux"
    xattrs: Xattrs = "allowlist-only"
    erofs_version: ErofsVersion = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningOptions:
    """The certificate, and exactly one way to its private key."""

    certificate: Path
    key: str | None = None
    """A file, or with `tool` also a `pkcs11:` URI."""
    passphrase: Path | None = None
    """A file with the key's passphrase."""
    command: str | None = None
    """Takes what is to be signed on standard input, and writes the signature."""
    tool: SignTool | None = None
    pkcs11_module: Path | None = None
    request: Path | None = None
    """A file to write what is to be signed to; nothing is signed."""
    response: Path | None = None
    """A file with the answer to such a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOptions:
    """What goes into the UKI besides the digest."""

    kernel: str | None = None
    """Version, where the image has several."""
    kargs: tuple[str, ...] = ()
    karg_style: KargStyle = "composefs"
    ukify: str = "auto"
    """`auto`, `builtin`, or a path."""
    flow: FlowChoice = "auto"
    uki: str | None = None
    """File name or path of the one to take, where the image has several."""
    allow_missing_verity: bool = False
    """Take, or make, a UKI that boots also what fs-verity does not protect."""
    signing: SigningOptions | None = None
    """How the UKI and the boot loader are signed; None leaves them as they are."""
    db: tuple[Path, ...] = ()
    """Certificates, one of which must be behind the image's own UKI and addons; without any, these may be unsigned."""
    loader: LoaderName = "systemd-boot"
    timeout: int = TIMEOUT
    """Seconds that the boot menu waits."""
    secure_boot_enroll: EnrollMode | None = None
    console: str | None = None
    """`serial`, or a terminal as the kernel calls it."""
    size_limit: int | None = None
    """Bytes that the UKI may have, where it is built here."""
    initrd: InitrdName = "image"
    initrd_tools: tuple[str, ...] = ()
    """Programs of the image that a built-in initramfs has besides."""
    dracut: DracutOptions = field(default_factory=DracutOptions)
    """For `initrd` of dracut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest:
    source: Reference
    repo: Path
    name: str | None = None
    """By default the source's own."""
    hash: Hash | None = None
    """Of a new repository; an existing one has its own."""
    options: SourceOptions = field(default_factory=SourceOptions)
    tree: TreeOptions = field(default_factory=TreeOptions)
    boot: BootOptions | None = field(default_factory=BootOptions)
    """None to stop after the digest."""
    uki_layer: int | None = None
    """The number of a layer that is there for a UKI, from 1; -1 is the last."""
    verity: VerityOptions | None = None
    """The mode `verity`; None is the mode `composefs`."""
    root_signing: SigningOptions | None = None
    """How the root hash of dm-verity is signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealRequest:
    source: Reference
    destination: Reference
    repo: Path
    hash: Hash | None = None
    """Of a new repository; an existing one has its own."""
    options: SourceOptions = field(default_factory=SourceOptions)
    """For source and destination."""
    tree: TreeOptions = field(default_factory=TreeOptions)
    boot: BootOptions = field(default_factory=BootOptions)
    ship_erofs: bool = False
    """Put the rootfs image into the UKI's layer as well."""
    strip_kernel: bool = False
    """Remove from /usr the kernels and initramfs, which are in the UKI."""
    dry_run: bool = False
    """Do all but write the destination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRequest:
    source: Reference
    hash: Hash = "sha256"
    options: SourceOptions = field(default_factory=SourceOptions)
    tree: TreeOptions = field(default_factory=TreeOptions)
    uki_layer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    repo: Path
    target: Path
    """A disk image to be made, or a whole block device."""
    name: str | None = None
    """A converted image; the one converted last by default."""
    size: int | None = None
    """Bytes of the whole disk; by default what the image needs and some room, or all of a device."""
    esp_size: int | None = None
    verity_size: int | None = None
    """Bytes of the partition with the hash tree; by default what it needs."""
    ab: bool = False
    """Two slots, each for a root file system under dm-verity; one stays empty."""
    root_size: int | None = None
    """Bytes of the root partition in a slot; by default what the image needs and half as much again."""
    wipe: bool = False
    """Replace what is there."""
    format: DiskFormat | None = None
    """Of a disk image; by default what its name ends in, else raw."""
    sector: int | None = None
    """Bytes of a logical block; 512 by default, a device has its own."""
    secret: Secret | None = None
    """Encrypts the root partition."""
    first_boot: FirstBoot = field(default_factory=FirstBoot)
    nvram: bool = True
    """Where the target is a disk of this machine, make it the firmware's first choice."""


def parse_source(text: str) -> Reference:
    """Take a source as people type it; a path alone is a directory."""
    if text.startswith(("/", "./", "../", "~/")) or text in (".", ".."):
        path = Path(text).expanduser()
        if not path.is_dir():
            raise FormatError(f"not a directory: {text}", hint=f"an archive is oci-archive:{text}")
        return DirectoryReference(path)
    return Reference.parse(text)
