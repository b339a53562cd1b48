"""What `convert` is asked for in words that depend on one another: dracut's, and those of the mode `verity`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final

from oci2boot.boot.dracut import DracutOptions
from oci2boot.boot.initrd import InitrdName
from oci2boot.digest import Hash
from oci2boot.errors import Error, FormatError
from oci2boot.rootfs.dmverity import KargForm, Overlay, VerityOptions
from oci2boot.rootfs.mkfs import Compression
from oci2boot.store.roots import Mode
from oci2boot.workflows.options import Option, said
from oci2boot.workflows.requests import SigningOptions

VERITY: Final = "Mode verity"
"""The panel of these options in help."""
NONE: Final = "none"
ALL: Final = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedDracut:
    """Options of `--initrd dracut`, called as dracut's own; each holds words with spaces between."""

    install: Annotated[
        tuple[str, ...],
        Option(
            "--dracut-install",
            'files of the image to add to the initramfs of --initrd dracut: "/a /b"; may be repeated',
            metavar="PATHS",
        ),
    ] = ()
    add_drivers: Annotated[
        tuple[str, ...],
        Option("--dracut-add-driver", "kernel modules to add to dracut's initramfs; may be repeated", metavar="NAMES"),
    ] = ()
    force_drivers: Annotated[
        tuple[str, ...],
        Option(
            "--dracut-force-driver",
            "kernel modules to add to dracut's initramfs, and to load first; may be repeated",
            metavar="NAMES",
        ),
    ] = ()
    modules: Annotated[
        tuple[str, ...],
        Option("--dracut-module", "dracut modules to add to dracut's initramfs; may be repeated", metavar="NAMES"),
    ] = ()
    filesystems: Annotated[
        tuple[str, ...],
        Option(
            "--dracut-filesystem",
            "the only file systems that dracut's initramfs supports; may be repeated",
            metavar="NAMES",
        ),
    ] = ()

    def options(self, initrd: InitrdName) -> DracutOptions:
        """Raise `FormatError` for words that no dracut would hear."""
        if initrd != "dracut" and self != AskedDracut():
            raise FormatError("--dracut-… says what dracut must do, but dracut is not run", hint="add --initrd dracut")
        return DracutOptions.parse(
            install=self.install,
            add_drivers=self.add_drivers,
            force_drivers=self.force_drivers,
            modules=self.modules,
            filesystems=self.filesystems,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedVerity:
    """Options of `--mode verity`; None is what was not said."""

    PANEL: ClassVar = VERITY

    compression: Annotated[
        str | None,
        Option(
            "--compression",
            "compression of the EROFS image: zstd,level=12, or lz4, lz4hc, lzma, deflate, none (default: none)",
        ),
    ] = None
    verity: Annotated[
        bool | None,
        Option("--verity/--no-verity", "guard the root file system by dm-verity (the default), or by nothing"),
    ] = None
    hash: Annotated[Hash | None, Option("--verity-hash", "hash of the hash tree (default: sha256)")] = None
    salt: Annotated[
        str | None,
        Option("--verity-salt", "salt of the hash tree; by default it follows from the image", metavar="HEX"),
    ] = None
    blocks: Annotated[
        str | None,
        Option(
            "--verity-blocks",
            "how many blocks of 4096 bytes are guarded; only these can be read (default: all)",
            metavar="all|N",
        ),
    ] = None
    embedded: Annotated[
        bool | None,
        Option(
            "--verity-embedded/--verity-partition",
            "put the hash tree behind the file system, or in a partition of its own (the default)",
        ),
    ] = None
    form: Annotated[
        KargForm | None,
        Option(
            "--verity-karg",
            "how the initramfs learns the root hash: roothash= alone (the default); systemd.verity_root_data= and "
            "more as well; or /etc/veritytab in it",
        ),
    ] = None
    words: Annotated[
        tuple[str, ...],
        Option(
            "--verity-option",
            "option of dm-verity, as in veritytab(5): panic-on-corruption, restart-on-corruption, …; may be repeated",
        ),
    ] = ()
    overlays: Annotated[
        tuple[str, ...],
        Option(
            "--overlay",
            "place that can be written; may be repeated; none: nothing can be written (default: /etc and /var)",
            metavar="/PATH[:tmpfs]",
        ),
    ] = ()
    signature: Annotated[
        bool | None,
        Option(
            "--verity-signature/--no-verity-signature",
            "have the kernel demand a signature of the root hash (the default)",
        ),
    ] = None

    def options(self, mode: Mode) -> VerityOptions | None:
        """Return what is asked for; None in the mode `composefs`, which has none of these options."""
        if mode == "composefs":
            if named := said(self):
                raise Error(f"{named[0]} is an option of --mode verity", hint="add --mode verity, or leave it out")
            return None
        if self.verity is False:
            self._check_unguarded()
        return VerityOptions(
            compression=Compression.parse(self.compression or NONE),
            verity=self.verity is not False,
            hash=self.hash or "sha256",
            salt=_salt(self.salt) if self.salt is not None else None,
            blocks=_blocks(self.blocks or ALL),
            place="embedded" if self.embedded else "partition",
            signature=self.verity is not False and self.signature is not False,
            form=self.form or ("systemd" if self.embedded else "roothash"),
            options=self.words,
            overlays=_overlays(self.overlays),
        )

    def _check_unguarded(self) -> None:
        apart = replace(
            self,
            compression=None,
            verity=None,
            words=(),
            overlays=(),
            signature=self.signature or None,
        )
        if named := said(apart):
            raise FormatError(f"{named[0]} and --no-verity: there is no hash tree", hint="leave one of the two out")


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSigner:
    """The signer of the root hash, if it is another than that for Secure Boot."""

    PANEL: ClassVar = VERITY

    certificate: Annotated[
        Path,
        Option("--verity-certificate", "certificate of --verity-key", missing="--verity-key without a certificate"),
    ]
    key: Annotated[
        str,
        Option(
            "--verity-key",
            "private key that signs the root hash; by default the one for Secure Boot",
            missing="--verity-certificate without a key",
        ),
    ]
    passphrase: Annotated[
        Path | None, Option("--verity-passphrase-file", "file with the passphrase of --verity-key")
    ] = None

    def options(self) -> SigningOptions:
        return SigningOptions(certificate=self.certificate, key=self.key, passphrase=self.passphrase)


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


def _overlays(texts: tuple[str, ...]) -> tuple[Overlay, ...]:
    if not texts:
        return VerityOptions().overlays
    if NONE in texts:
        if len(texts) > 1:
            raise FormatError("--overlay none, and other places with it", hint="name the places, or none")
        return ()
    return tuple(map(Overlay.parse, texts))
