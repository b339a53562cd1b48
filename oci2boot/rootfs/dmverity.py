"""A root file system under dm-verity: what may be asked for, and what the kernel command line says of it.

systemd-veritysetup-generator(8), veritytab(5); UAPI group, Discoverable Partitions Specification.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self, get_args
from uuid import UUID

from oci2boot.digest import External, Hash, RootHash
from oci2boot.errors import FormatError, KargFormError, NoVerityError
from oci2boot.formats.dmverity import SALT_MAX, Area
from oci2boot.rootfs.mkfs import Compression

Place = Literal["partition", "embedded"]
"""Of the hash tree: in a partition of its own, or in the root partition behind the file system."""
Kept = Literal["persistent", "tmpfs"]
KargForm = Literal["roothash", "systemd", "veritytab"]
"""The root hash alone, for systemd-gpt-auto-generator; with both partitions named; or in the initramfs's veritytab."""

ROOT_HASH: Final = "roothash"
UNCOMPRESSED: Final = Compression()
REQUIRE_SIGNATURES: Final = "dm_verity.require_signatures=1"
"""The kernel then opens no dm-verity device at all without a signature by a key that it trusts."""
SIGNATURE_NAME: Final = "roothash.p7s.cred"
SIGNATURE_FILE: Final = f"/.extra/credentials/{SIGNATURE_NAME}"
"""In the initramfs: systemd-stub puts there what lies beside the UKI under the name. systemd-stub(7)."""
DEBUG_ONLY: Final = frozenset({"ignore-corruption"})
"""With them, a failed verification is only logged."""

_FLAGS: Final = frozenset(
    {"ignore-corruption", "restart-on-corruption", "panic-on-corruption", "ignore-zero-blocks", "check-at-most-once"}
)
_ON_CORRUPTION: Final = frozenset({"ignore-corruption", "restart-on-corruption", "panic-on-corruption"})
_OPTIONS: Final = "systemd.verity_root_options"
_OURS: Final = ("roothash", "systemd.verity_root_", "dm_verity.require_signatures")
_ELSEWHERE: Final = ("composefs", "composefs.digest", "rd.systemd.verity", "rd.veritytab")
_OVERLAY: Final = re.compile(r"/[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_NOT_OVERLAID: Final = frozenset(
    "bin boot dev efi lib lib32 lib64 libx32 proc run sbin sys sysroot tmp usr".split()  # noqa: SIM905
)
"""What is verified for a reason, or is no part of the image."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A place that can be written, over the image's own content."""

    path: str
    kept: Kept = "persistent"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take `/var` or `/var:tmpfs`."""
        path, colon, kept = text.partition(":")
        if not _OVERLAY.fullmatch(path) or {".", ".."} & set(path.split("/")):
            raise FormatError(f"not a place for an overlay: {text[:80]!r}", hint="write /var, or /var:tmpfs")
        if path.split("/")[1] in _NOT_OVERLAID:
            raise FormatError(
                f"an overlay on {path} would hide what is verified", hint="/etc, /var and /home are usual"
            )
        match kept:
            case "persistent" | "tmpfs":
                return cls(path, kept)
            case "" if not colon:
                return cls(path)
        raise FormatError(f"an overlay is persistent or tmpfs, not {kept[:40]!r}")

    def __str__(self) -> str:
        return self.path if self.kept == "persistent" else f"{self.path}:{self.kept}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerityOptions:
    """What an image of the mode `verity` is asked to be like."""

    compression: Compression = UNCOMPRESSED
    verity: bool = True
    """False: the same file system, and nothing guards it."""
    hash: Hash = "sha256"
    salt: bytes | None = None
    """None takes one that follows from the image."""
    blocks: int | None = None
    """Data blocks that are guarded, from the first; None for all."""
    place: Place = "partition"
    signature: bool = True
    """The kernel must demand a signature of the root hash."""
    form: KargForm = "roothash"
    options: tuple[str, ...] = ()
    """Of veritytab(5)."""
    overlays: tuple[Overlay, ...] = (Overlay("/etc"), Overlay("/var"))

    def __post_init__(self) -> None:
        for value, words in ((self.hash, Hash), (self.place, Place), (self.form, KargForm)):
            if value not in get_args(words):
                raise FormatError(f"not known to dm-verity here: {str(value)[:80]!r}")
        if not self.verity and (self.options or self.blocks is not None or self.salt is not None):
            raise NoVerityError("options of dm-verity are given, but dm-verity is left out")
        if self.salt is not None and len(self.salt) > SALT_MAX:
            raise FormatError(f"a salt of {len(self.salt)} bytes, dm-verity takes {SALT_MAX}")
        if self.blocks is not None and self.blocks < 1:
            raise FormatError(f"{self.blocks} guarded blocks: at least one must be guarded")
        if self.place == "embedded" and self.form == "roothash":
            raise KargFormError("a hash tree behind the file system is not found by the root hash alone")
        _check_options(self.options)
        paths = [f"{overlay.path}/" for overlay in self.overlays]
        for path in paths:
            if any(path.startswith(other) for other in paths if other is not path):
                raise FormatError(f"two overlays are on {path.rstrip('/')}", hint="name each place once")

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "compression": str(self.compression),
            "salt": None if self.salt is None else self.salt.hex(),
            "options": list(self.options),
            "overlays": [str(overlay) for overlay in self.overlays],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Raise `FormatError`, or an error of Python's about types, keys or values, for what `to_json` never gave."""
        salt = found["salt"]
        return cls(
            **{
                **found,
                "compression": Compression.parse(found["compression"]),
                "salt": None if salt is None else bytes.fromhex(salt),
                "options": tuple(found["options"]),
                "overlays": tuple(map(Overlay.parse, found["overlays"])),
            }
        )


def check_sealed(options: Iterable[str]) -> None:
    """Refuse what only a debugging machine may have."""
    if loose := DEBUG_ONLY.intersection(options):
        raise FormatError(
            f"{', '.join(sorted(loose))} switches verification off: not in what is signed",
            hint="leave it out, or sign nothing",
        )


def _check_options(options: Sequence[str]) -> None:
    for option in options:
        if option not in _FLAGS:
            raise FormatError(
                f"not an option of dm-verity that can be chosen here: {option[:80]!r}",
                hint=f"known are {', '.join(sorted(_FLAGS))}",
            )
    if len(_ON_CORRUPTION.intersection(options)) > 1:
        raise FormatError("two options say what happens on corruption", hint="choose one of panic, restart and ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerityRootfs:
    """A root file system as the partitions hold it."""

    image: External
    """The EROFS image."""
    raw_size: int
    """Bytes of the files' content before compression."""
    uuid: UUID
    """Of the file system."""
    area: Area | None = None
    root_hash: RootHash | None = None
    tree: External | None = None
    """The whole hash area, superblock and all."""


def verity_arguments(root: VerityRootfs, options: VerityOptions) -> list[str]:
    """Return what the kernel command line says of the root file system, and the initramfs reads."""
    if root.root_hash is None:
        return [f"root=UUID={root.uuid}"]
    required = [REQUIRE_SIGNATURES] if options.signature else []
    if options.form == "veritytab":
        return ["root=/dev/mapper/root", *required]
    words = [f"{ROOT_HASH}={root.root_hash}", *required]
    settings = _settings(root, options)
    if options.form == "systemd":
        data, tree = _devices(root.root_hash, options.place)
        words += [f"systemd.verity_root_data={data}", f"systemd.verity_root_hash={tree}"]
    if settings:
        words.append(f"systemd.verity_root_options={','.join(settings)}")
    return words


def veritytab(root: VerityRootfs, options: VerityOptions) -> bytes:
    """Return `/etc/veritytab` for the initramfs."""
    if root.root_hash is None:
        return b""
    data, tree = _devices(root.root_hash, options.place)
    return f"root {data} {tree} {root.root_hash} {','.join(_settings(root, options)) or '-'}\n".encode()


def _devices(root_hash: RootHash, place: Place) -> tuple[str, str]:
    data = f"PARTUUID={root_hash.data_uuid}"
    return data, data if place == "embedded" else f"PARTUUID={root_hash.hash_uuid}"


def _settings(root: VerityRootfs, options: VerityOptions) -> list[str]:
    offset = [f"hash-offset={root.image.size}"] if options.place == "embedded" else []
    signature = [f"root-hash-signature={SIGNATURE_FILE}"] if options.signature else []
    return [*offset, *signature, *options.options]


def plain_word(word: str) -> str:
    """Return a kernel argument as its readers understand it: `-` and `_` are one to them, quotes are none."""
    key, equals, value = word.replace('"', "").partition("=")
    return key.replace("-", "_") + equals + value


def merge_arguments(given: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return the user's kernel arguments with those of the root file system behind them, each once.

    Raises `FormatError` for a root hash or a device that contradicts; further `systemd.verity_root_options=` are added.
    """
    kept = []
    added: list[str] = []
    values = dict(word.split("=", 1) for word in own)
    for word in given:
        key, _, value = plain_word(word).partition("=")
        if key == _OPTIONS:
            extra = [option for option in value.split(",") if option]
            _check_options([option for option in extra if option not in values.get(key, "").split(",")])
            added += extra
        elif key in _ELSEWHERE or (key in ("root", "usrhash", "rootfstype", "systemd.verity", "veritytab") and values):
            raise FormatError(f"{word[:80]} contradicts a root file system under dm-verity", hint="leave it out")
        elif key.startswith(_OURS):
            if values.get(key) != value:
                raise FormatError(
                    f"{word[:120]} is given, the image has {key}={values.get(key, '')}", hint=f"leave {key}= out"
                )
        else:
            kept.append(word)
    if added:
        before = [option for option in values.get(_OPTIONS, "").split(",") if option]
        together = [*before, *(option for option in dict.fromkeys(added) if option not in before)]
        _check_options([option for option in together if "=" not in option])
        values[_OPTIONS] = ",".join(together)
    return [*kept, *(f"{key}={value}" for key, value in values.items())]
