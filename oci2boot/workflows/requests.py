"""What the user asks for, as values. Each field that can be said carries the words for it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from oci2boot.boot.dracut import DracutOptions
from oci2boot.boot.initrd import InitrdName
from oci2boot.boot.loader import TIMEOUT, EnrollMode, LoaderName
from oci2boot.boot.sign import SignTool
from oci2boot.boot.told import ReadMode
from oci2boot.digest import Hash
from oci2boot.formats.file_contexts.specs import Rules
from oci2boot.oci.manifest import Platform
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.sysroot.first_boot import FirstBoot
from oci2boot.target.formats import DiskFormat
from oci2boot.target.luks import Secret
from oci2boot.tree.prepare import Xattrs
from oci2boot.tree.times import SECONDS, Times
from oci2boot.workflows.images import default_repo, writable_repo
from oci2boot.workflows.options import Option, parse_bool, parse_size
from oci2boot.workflows.sources import Source

ErofsVersion = Literal[0, 1, 2]
KargStyle = Literal["composefs", "digest"]
FlowChoice = Literal["auto", "sealed", "vendor", "local", "type1", "files", "aboot"]
"""`auto` is sealed where a UKI of the image carries a composefs argument, else local; never what nothing signs."""

Name = Annotated[str | None, Option("--name", "name of the image in the store; by default the source's own")]
_REPO: Final = Option("--repo", "composefs repository, the store", env="OCI2BOOT_REPO")
Repo = Annotated[Path, replace(_REPO, default=default_repo)]
"""To read from."""
NewRepo = Annotated[Path, replace(_REPO, default=writable_repo)]
"""To write to; it is made where there is none."""
ChosenRepo = Annotated[Path | None, _REPO]
"""None where it is not named, and the command finds the right one."""
_HASH: Final = Option("--hash", "hash of the objects and the digest (default: sha256)", shown=False)
HashName = Annotated[Hash, _HASH]
NewHash = Annotated[Hash | None, _HASH]
"""Of a new repository; an existing one has its own."""
PlatformName = Annotated[
    Platform | None, Option("--platform", "platform of the image: os/arch or os/arch/variant", parse=Platform.parse)
]
UkiLayer = Annotated[
    int | None,
    Option(
        "--uki-layer",
        "number of the layer that only carries a UKI, and is no part of the root file system; -1 is the last",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetching:
    """How an image is fetched, in words."""

    platform: PlatformName = None
    tls_verify: Annotated[
        bool,
        Option("--tls-verify", "false: accept any certificate, or plain http", metavar="BOOL", parse=parse_bool),
    ] = True
    authfile: Annotated[Path | None, Option("--authfile", "file with credentials for registries")] = None

    def options(self) -> SourceOptions:
        return SourceOptions(self.platform, self.tls_verify, self.authfile)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOptions:
    """What decides a digest besides the image: recorded wherever the digest is."""

    bootable: Annotated[
        bool, Option("--bootable/--plain", "measure the form that boots, or the form of a container")
    ] = True
    selinux_rules: Annotated[Rules, Option("--selinux-rules", "whose rules label the files, where the two differ")] = (
        "libselinux"
    )
    xattrs: Annotated[
        Xattrs,
        Option(
            "--xattrs", "which extended attributes of the layers are kept", type=Literal["allowlist-only", "keep-user"]
        ),
    ] = "allowlist-only"
    erofs_version: Annotated[ErofsVersion, Option("--erofs-version", "format of the rootfs image")] = 1
    times: Annotated[
        Times,
        Option(
            "--times",
            "of a directory. seconds: as layers carry them; nearest: as the layer of buildah --squash; exact: with "
            "nanoseconds, as cfsctl create-image; EPOCH: this one, as buildah --timestamp; clamp:EPOCH: no later one, "
            "as rewrite-timestamp of BuildKit",
            metavar="TIMES",
            parse=Times.parse,
        ),
    ] = SECONDS
    times_below: Annotated[
        Path | None,
        Option(
            "--times-below",
            "directory that the build began with, its base image: these files keep their times in spite of --times",
            metavar="DIR",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningOptions:
    """The certificate, and exactly one way to its private key."""

    PANEL: ClassVar = "Signing"

    key: Annotated[
        str | None,
        Option("--secureboot-key", "private key: a PEM file, or with --signtool a pkcs11: URI"),
    ] = None
    certificate: Annotated[
        Path,
        Option(
            "--secureboot-certificate",
            "certificate of that key, the one that the firmware has or will have in db",
            missing="a key is given, and a certificate is missing",
        ),
    ]
    passphrase: Annotated[
        Path | None, Option("--secureboot-passphrase-file", "file with the passphrase of the private key")
    ] = None
    """A file."""
    command: Annotated[
        str | None,
        Option(
            "--sign-command", "command that reads what it must sign on standard input, and writes the raw RSA signature"
        ),
    ] = None
    tool: Annotated[SignTool | None, Option("--signtool", "tool that signs with a key in a PKCS #11 token")] = None
    pkcs11_module: Annotated[Path | None, Option("--pkcs11-module", "PKCS #11 library of the token")] = None
    request: Annotated[
        Path | None, Option("--sign-request", "sign nothing; write what must be signed to this file")
    ] = None
    response: Annotated[Path | None, Option("--sign-response", "file with the answer to a --sign-request")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOptions:
    """What goes into the UKI besides the digest."""

    kargs: Annotated[tuple[str, ...], Option("--karg", "kernel argument to add; may be repeated")] = ()
    karg_style: Annotated[
        KargStyle, Option("--karg-style", "form of the kernel argument: composefs=… or composefs.digest=v1-…")
    ] = "composefs"
    kernel: Annotated[str | None, Option("--kver", "version of the kernel to use, if the image has several")] = None
    ukify: Annotated[
        str,
        Option(
            "--ukify",
            "what builds the UKI. builtin: the same bytes on every machine, so that a signature made elsewhere fits; "
            "auto: builtin, and a ukify that is installed where only that takes the image's stub; or the path of one",
        ),
    ] = "auto"
    flow: Annotated[
        FlowChoice,
        Option(
            "--flow",
            "sealed: use the image's UKI, with the digest in it; vendor: use the image's UKI, and put the digest into "
            "an addon; "
            "local: build a UKI here; type1: no UKI, but a kernel, an initramfs and a menu entry that nothing signs; "
            "files: kernel, initramfs, command line and device tree as plain files in DIRECTORY, for U-Boot or PXE; "
            "aboot: an Android boot image there, for fastboot; "
            "auto: sealed if a UKI of the image has a digest, else local",
        ),
    ] = "auto"
    devicetree: Annotated[
        str | None,
        Option(
            "--devicetree",
            "device tree of the image for the flows without UKI: vendor/board.dtb of its kernel, or /path/in/the/image",
            metavar="NAME",
        ),
    ] = None
    aboot: Annotated[
        str | None,
        Option(
            "--aboot",
            "how --flow aboot lays out the boot image, in mkbootimg's words: pagesize=4096,base=0x80000000,…",
            metavar="NAME=VALUE,…",
        ),
    ] = None
    read: Annotated[
        ReadMode,
        Option(
            "--read",
            "ahead: the initramfs reads the rootfs image whole, and a damaged one does not boot; on-demand: it is "
            "opened by its digest, and each block is verified when it is used",
        ),
    ] = "ahead"
    uki: Annotated[str | None, Option("--uki", "UKI to use, if the image has several")] = None
    """File name or path."""
    size_limit: Annotated[
        int | None,
        Option(
            "--uki-limit",
            "most that the boot loader may have to load, in every flow, of kernel, command line, device tree and "
            "initramfs together: 64M",
            parse=parse_size,
        ),
    ] = None
    initrd: Annotated[
        InitrdName,
        Option(
            "--initrd",
            "image: the initramfs that the image brings; builtin: a small one made of the image's files; dracut: one "
            "that the image's dracut makes now, in the image's root",
        ),
    ] = "image"
    initrd_tools: Annotated[
        tuple[str, ...],
        Option(
            "--initrd-tool",
            "program of the image to add to the initramfs of --initrd builtin, for debugging; may be repeated",
            metavar="PROGRAM",
        ),
    ] = ()
    both_hashes: Annotated[
        bool,
        Option(
            "--both-hashes",
            "promise the root file system by both hashes, sha256 and sha512, so that a store of either boots it; the "
            "initramfs, which is signed, has the two digests",
        ),
    ] = False
    strip_kernel: Annotated[
        bool,
        Option("--strip-kernel", "leave kernel and initramfs out of /usr of the root file system: the UKI has them"),
    ] = False
    debug_shell: Annotated[
        bool,
        Option(
            "--debug-shell",
            "leave the image's initramfs the shell that it gives where the boot fails, instead of a restart; never in "
            "what is signed or sealed",
        ),
    ] = False
    allow_missing_verity: Annotated[
        bool, Option("--allow-missing-verity", "accept, or make, a UKI that does not insist on fs-verity")
    ] = False
    db: Annotated[
        tuple[Path, ...],
        Option(
            "--db",
            "certificate that must have signed what the image brings to be booted: UKI, addons and boot loader; may be "
            "repeated: one is enough",
        ),
    ] = ()
    """What is signed here is as good; without any, nothing has to be signed."""
    loader: Annotated[
        LoaderName,
        Option(
            "--loader",
            "what the firmware starts. systemd-boot; direct: the UKI itself, alone on its disk; shim: the image's "
            "shim, which starts systemd-boot; none: what is there already, such as a GRUB that reads BLS",
        ),
    ] = "systemd-boot"
    timeout: Annotated[int, Option("--timeout", "how many seconds the boot menu waits", least=0, most=65535)] = TIMEOUT
    secure_boot_enroll: Annotated[
        EnrollMode | None,
        Option(
            "--secure-boot-enroll",
            "when systemd-boot enrols the keys that `keys enroll` put on the ESP: loader.conf(5) (default: if-safe)",
        ),
    ] = None
    console: Annotated[
        str | None,
        Option("--console", "console of the machine: serial, or the kernel's name for a terminal: ttyS1,115200"),
    ] = None
    dracut: DracutOptions = field(default_factory=DracutOptions)
    """For `initrd` of dracut."""
    signing: SigningOptions | None = None
    """How the UKI and the boot loader are signed; None leaves them as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linting:
    """What becomes of what the checks of an image find; they warn where nothing is said."""

    PANEL: ClassVar = "Checks"

    strict: Annotated[
        bool, Option("--strict", "stop where a check of the image finds more than is worth a note: see `lint`")
    ] = False
    skip: Annotated[
        tuple[str, ...], Option("--skip", "check to leave out; may be repeated: `lint --list`", metavar="NAME")
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest:
    source: Source
    name: Name = None
    """By default the source's own."""
    repo: NewRepo
    hash: NewHash = None
    uki_layer: UkiLayer = None
    directory: Annotated[
        Path | None, Option("DIRECTORY", "where --flow files and aboot write; it is made, and may have such files")
    ] = None
    options: SourceOptions = field(default_factory=SourceOptions)
    tree: TreeOptions = field(default_factory=TreeOptions)
    boot: BootOptions | None = field(default_factory=BootOptions)
    """None to stop after the digest."""
    verity: VerityOptions | None = None
    """The mode `verity`; None is the mode `composefs`."""
    root_signing: SigningOptions | None = None
    """How the root hash of dm-verity is signed."""
    linting: Linting = field(default_factory=Linting)


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRequest:
    source: Source
    hash: HashName = "sha256"
    uki_layer: UkiLayer = None
    options: SourceOptions = field(default_factory=SourceOptions)
    tree: TreeOptions = field(default_factory=TreeOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRequest:
    """What a disk is like, where it is made."""

    size: Annotated[
        int | None, Option("--size", "size of a disk image: 10G; by default as much as it needs", parse=parse_size)
    ] = None
    """Bytes; of a device all."""
    esp_size: Annotated[int | None, Option("--esp-size", "size of the EFI system partition", parse=parse_size)] = None
    verity_size: Annotated[
        int | None,
        Option("--verity-partition-size", "size of the partition with the hash tree: 100M", parse=parse_size),
    ] = None
    """By default what it needs."""
    ab: Annotated[
        bool,
        Option(
            "--ab", "make two slots for a root file system under dm-verity: `upgrade` writes the one that is not booted"
        ),
    ] = False
    root_size: Annotated[
        int | None,
        Option(
            "--root-size",
            "with --ab, size of the root partition in each slot: 8G; by default one and a half times the image",
            parse=parse_size,
        ),
    ] = None
    sector: Annotated[
        int | None, Option("--sector-size", "sector size of a disk image: 512 or 4096 bytes; a real disk has its own")
    ] = None
    format: Annotated[
        DiskFormat | None,
        Option("--format", "format of the disk image, or iso for a live ISO; by default what its name ends in"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    repo: Path
    target: Path
    """A disk image to be made, or a whole block device."""
    name: str | None = None
    """A converted image; the one converted last by default."""
    disk: DiskRequest = field(default_factory=DiskRequest)
    wipe: bool = False
    """Replace what is there."""
    secret: Secret | None = None
    """Encrypts the root partition."""
    first_boot: FirstBoot = field(default_factory=FirstBoot)
    nvram: bool = True
    """Where the target is a disk of this machine, make it the firmware's first choice."""
    linting: Linting | None = field(default_factory=Linting)
    """None where the image was looked at just now."""
