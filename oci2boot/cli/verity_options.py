"""The options of `convert --mode verity`."""

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from oci2boot.errors import Error, FormatError
from oci2boot.rootfs.mkfs import Compression
from oci2boot.rootfs.verity import Overlay, VerityOptions
from oci2boot.workflows.requests import SigningOptions

_PANEL: Final = "Mode verity"
NONE: Final = "none"
ALL: Final = "all"

Mode = Annotated[
    Literal["composefs", "verity"],
    typer.Option(
        "--mode",
        help="composefs: each file guarded by fs-verity, on a file system that can be written; "
        "verity: one read-only EROFS partition guarded by dm-verity",
    ),
]
CompressionName = Annotated[
    str | None,
    typer.Option(
        "--compression",
        help="of the EROFS image: zstd,level=12, or lz4, lz4hc, lzma, deflate; none (the default)",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Verity = Annotated[
    bool | None,
    typer.Option(
        "--verity/--no-verity", help="guard it by dm-verity (the default)", show_default=False, rich_help_panel=_PANEL
    ),
]
VerityHash = Annotated[
    Literal["sha256", "sha512"] | None,
    typer.Option("--verity-hash", help="of the hash tree (sha256)", show_default=False, rich_help_panel=_PANEL),
]
VeritySalt = Annotated[
    str | None,
    typer.Option(
        "--verity-salt",
        metavar="HEX",
        help="of the hash tree; by default one that follows from the image",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
VerityBlocks = Annotated[
    str | None,
    typer.Option(
        "--verity-blocks",
        metavar="all|N",
        help="how many blocks of 4096 bytes are guarded, and so can be read (all)",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
VerityEmbedded = Annotated[
    bool | None,
    typer.Option(
        "--verity-embedded/--verity-partition",
        help="put the hash tree behind the file system, or in a partition of its own (the default)",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
VerityKarg = Annotated[
    Literal["roothash", "systemd", "veritytab"] | None,
    typer.Option(
        "--verity-karg",
        help="how the initramfs is told: roothash= alone (the default); systemd.verity_root_data= and more as well; "
        "or /etc/veritytab in it",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
VerityOption = Annotated[
    list[str] | None,
    typer.Option(
        "--verity-option",
        help="as in veritytab(5): panic-on-corruption, restart-on-corruption, …; may be repeated",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Overlays = Annotated[
    list[str] | None,
    typer.Option(
        "--overlay",
        metavar="/PATH[:tmpfs]",
        help="a place that can be written; may be repeated; none for no place at all (/etc and /var)",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
VeritySignature = Annotated[
    bool | None,
    typer.Option(
        "--verity-signature/--no-verity-signature",
        help="the kernel demands a signature of the root hash (the default)",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
VerityKey = Annotated[
    str | None,
    typer.Option(
        "--verity-key",
        help="signs the root hash; by default as for Secure Boot",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
VerityCertificate = Annotated[
    Path | None,
    typer.Option("--verity-certificate", help="of --verity-key", show_default=False, rich_help_panel=_PANEL),
]
VerityPassphrase = Annotated[
    Path | None,
    typer.Option("--verity-passphrase-file", help="of --verity-key", show_default=False, rich_help_panel=_PANEL),
]


def verity_options(
    mode: str,
    compression: str | None,
    verity: bool | None,
    hash_name: Literal["sha256", "sha512"] | None,
    salt: str | None,
    blocks: str | None,
    embedded: bool | None,
    karg: Literal["roothash", "systemd", "veritytab"] | None,
    options: list[str] | None,
    overlays: list[str] | None,
    signature: bool | None,
) -> VerityOptions | None:
    """Return what is asked for; None in the mode `composefs`, which has none of these options."""
    given = {
        "--compression": compression,
        "--verity": verity,
        "--verity-hash": hash_name,
        "--verity-salt": salt,
        "--verity-blocks": blocks,
        "--verity-embedded": embedded,
        "--verity-karg": karg,
        "--verity-option": options or None,
        "--overlay": overlays or None,
        "--verity-signature": signature,
    }
    if mode == "composefs":
        if named := [name for name, value in given.items() if value is not None]:
            raise Error(f"{named[0]} is an option of --mode verity", hint="add --mode verity, or leave it out")
        return None
    if verity is False:
        tree = ("--verity-hash", "--verity-salt", "--verity-blocks", "--verity-embedded", "--verity-karg")
        if named := [name for name in tree if given[name] is not None] + ["--verity-signature"] * (signature is True):
            raise FormatError(
                f"{named[0]} and --no-verity: there is no hash tree", hint="leave the one or the other out"
            )
    return VerityOptions(
        compression=Compression.parse(compression or NONE),
        verity=verity is not False,
        hash=hash_name or "sha256",
        salt=_salt(salt) if salt is not None else None,
        blocks=_blocks(blocks or ALL),
        place="embedded" if embedded else "partition",
        signature=verity is not False and signature is not False,
        form=karg or ("systemd" if embedded else "roothash"),
        options=tuple(options or ()),
        overlays=_overlays(overlays),
    )


def root_signing(
    key: str | None, certificate: Path | None, passphrase: Path | None, otherwise: SigningOptions | None
) -> SigningOptions | None:
    """Return how the root hash is signed: by a key of its own, else as what the firmware loads."""
    if certificate is None and (key or passphrase):
        raise Error("--verity-key without a certificate", hint="name it by --verity-certificate")
    if certificate is not None and key is None:
        raise Error("--verity-certificate without a key", hint="name it by --verity-key")
    if certificate is None:
        return otherwise
    return SigningOptions(certificate=certificate, key=key, passphrase=passphrase)


def _salt(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise FormatError(f"not a salt in hexadecimal digits: {text[:80]!r}") from error


def _blocks(text: str) -> int | None:
    if text == ALL:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise FormatError(f"not a number of blocks: {text[:80]!r}", hint="--verity-blocks all, or a number")
    return int(text)


def _overlays(texts: list[str] | None) -> tuple[Overlay, ...]:
    if not texts:
        return VerityOptions().overlays
    if NONE in texts:
        if len(texts) > 1:
            raise FormatError("--overlay none, and other places with it", hint="name the places, or none")
        return ()
    return tuple(map(Overlay.parse, texts))
