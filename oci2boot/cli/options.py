"""Options that several commands share, and how their words become values."""

import os
import re
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from oci2boot.errors import Error, FormatError
from oci2boot.oci.manifest import Platform
from oci2boot.oci.source import SourceOptions
from oci2boot.workflows.images import list_images

TRANSPORTS: Final = ("oci", "oci-archive", "docker-archive", "containers-storage", "dir")


def repo_path(chosen: Path | None, *, writing: bool = False) -> Path:
    """Return the store to use: the one named, else the machine's own, else one in the user's data directory.

    A running machine keeps its own read-only: new images get there by `upgrade` and `switch` alone. XDG base directory
    specification, `XDG_DATA_HOME`.
    """
    if chosen is not None:
        return chosen
    booted = Path("/sysroot/composefs")
    if os.access(booted / "meta.json", os.R_OK) and (not writing or os.access(booted, os.W_OK)):
        return booted
    data = os.environ.get("XDG_DATA_HOME", "")
    home = Path(data) if data.startswith("/") else Path.home() / ".local/share"
    return home / "oci2boot/repo"


def parse_size(text: str) -> int:
    """Return bytes: `10G`, `512MiB`, `4096`; units are binary."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise FormatError(f"not a size: {text!r}", hint="write it as 512M or 10G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]


def parse_bool(text: str) -> bool:
    match text.lower():
        case "true" | "yes" | "1":
            return True
        case "false" | "no" | "0":
            return False
    raise FormatError(f"neither true nor false: {text!r}")


def source_options(
    platform: str | None = None, tls_verify: str = "true", authfile: Path | None = None
) -> SourceOptions:
    return SourceOptions(Platform.parse(platform) if platform else None, parse_bool(tls_verify), authfile)


def looks_like_a_source(text: str) -> bool:
    """Tell a source from a name: `install demo` must not ask a registry on the internet for library/demo."""
    return "/" in text or text.partition(":")[0] in TRANSPORTS


def complete_name(incomplete: str) -> list[str]:
    """Return the names of converted images, for the shell."""
    try:
        images = list_images(repo_path(Path(os.environ["OCI2BOOT_REPO"]) if "OCI2BOOT_REPO" in os.environ else None))
    except Error:
        return []
    return [image.name for image in images if image.name.startswith(incomplete)]


Source = Annotated[
    str,
    typer.Argument(
        help="REGISTRY/REPO:TAG (or with docker://), oci:DIR[:TAG], oci-archive:FILE[:TAG], "
        "docker-archive:FILE[:NAME], containers-storage:NAME, dir:ROOTFS, dumpfile:FILE",
        show_default=False,
    ),
]
Repo = Annotated[
    Path | None, typer.Option("--repo", envvar="OCI2BOOT_REPO", help="the composefs repository", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
ProgressJson = Annotated[bool, typer.Option("--progress-json", help="print progress as JSON lines on standard error")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")]
HashName = Annotated[
    Literal["sha256", "sha512"] | None,
    typer.Option("--hash", help="of objects and digest (sha256)", show_default=False),
]
ErofsVersion = Annotated[Literal[0, 1, 2], typer.Option("--erofs-version", help="format of the rootfs image")]
Bootable = Annotated[bool, typer.Option("--bootable/--plain", help="the form that boots, or a container's")]
SelinuxRules = Annotated[
    Literal["libselinux", "composefs-rs"], typer.Option("--selinux-rules", help="who decides where the two differ")
]
Xattrs = Annotated[Literal["allowlist-only", "keep-user"], typer.Option("--xattrs", help="what is kept from layers")]
PlatformName = Annotated[str | None, typer.Option("--platform", help="os/arch or os/arch/variant", show_default=False)]
TlsVerify = Annotated[
    str, typer.Option("--tls-verify", metavar="BOOL", help="false: take any certificate, or plain http")
]
Authfile = Annotated[Path | None, typer.Option("--authfile", help="credentials for registries", show_default=False)]
Kargs = Annotated[
    list[str] | None, typer.Option("--karg", help="a kernel argument to add; may be repeated", show_default=False)
]
Console = Annotated[
    str | None,
    typer.Option("--console", help="serial, or a terminal as the kernel calls it: ttyS1,115200", show_default=False),
]
Initrd = Annotated[
    Literal["image", "builtin", "dracut"],
    typer.Option(
        "--initrd",
        help="the initramfs that the image brings, a small one made of the image's files, "
        "or one that dracut of the image makes now, in the image's root",
    ),
]
InitrdTools = Annotated[
    list[str] | None,
    typer.Option(
        "--initrd-tool",
        metavar="PROGRAM",
        help="a program of the image for --initrd builtin to have besides, as for debugging; may be repeated",
        show_default=False,
    ),
]
Kver = Annotated[str | None, typer.Option("--kver", help="the kernel, where the image has several", show_default=False)]
Ukify = Annotated[str, typer.Option("--ukify", help="auto, builtin, or the path of a ukify")]
KargStyle = Annotated[
    Literal["composefs", "digest"], typer.Option("--karg-style", help="composefs=… or composefs.digest=v1-…")
]
Flow = Annotated[
    Literal["auto", "sealed", "vendor", "local", "type1"],
    typer.Option(
        "--flow",
        help="sealed: the image's UKI with the digest in it; vendor: the image's UKI, and an addon with the digest; "
        "local: a UKI built here; type1: no UKI, but a kernel, an initramfs and a menu entry that nothing signs; "
        "auto: sealed where a UKI of the image has a digest, else local",
    ),
]
UkiName = Annotated[
    str | None, typer.Option("--uki", help="the UKI to take, where the image has several", show_default=False)
]
UkiLimit = Annotated[
    str | None,
    typer.Option(
        "--uki-limit",
        help="the most that a UKI built here may take, as in 64M",
        show_default=False,
    ),
]
UkiLayer = Annotated[
    int | None,
    typer.Option(
        "--uki-layer",
        help="the layer, from 1, that is there for its UKI and no part of the root file system; -1 is the last",
        show_default=False,
    ),
]
Db = Annotated[
    list[Path] | None,
    typer.Option("--db", help="certificate that the image's own UKI must be signed by", show_default=False),
]
LoaderName = Annotated[
    Literal["systemd-boot", "direct", "shim", "none"],
    typer.Option(
        "--loader",
        help="what the firmware starts: systemd-boot; direct: the UKI itself, alone on its disk; "
        "shim: the image's shim, and systemd-boot by it; none: what is there, such as a GRUB that reads BLS",
    ),
]
SecureBootEnroll = Annotated[
    Literal["off", "manual", "if-safe", "force"] | None,
    typer.Option(
        "--secure-boot-enroll",
        help="when systemd-boot enrols the keys that `keys enroll` put on the ESP, as in loader.conf(5) (if-safe)",
        show_default=False,
    ),
]
Timeout = Annotated[int, typer.Option("--timeout", min=0, max=65535, help="seconds that the boot menu waits")]
AttestHook = Annotated[
    str | None,
    typer.Option(
        "--attest-hook",
        metavar="COMMAND",
        help="is run with two files behind it: the manifest of every path, and the PCRs that a TPM will hold",
        show_default=False,
    ),
]
AllowMissingVerity = Annotated[
    bool, typer.Option("--allow-missing-verity", help="take, or make, a UKI that does not insist on fs-verity")
]
