"""The kernel command line: words and quotes as in Linux, lib/cmdline.c, composefs arguments as in composefs-rs 0.9."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, Self

from oci2boot.digest import HEX_LENGTH, RootHash, VerityDigest
from oci2boot.errors import FormatError, LimitError

COMMAND_LINE_SIZE: Final = 2048
"""In bytes, the final NUL included (x86, arm64): the kernel cuts off the rest, maybe a digest, without a word."""
WHITE_SPACE: Final = " \t\n\v\f\r"

DECISIVE: Final = (
    "root=", "rootflags=", "rootfstype=", "roothash=", "mount.usr", "usrhash=", "init=", "rdinit=", "rd.",
    "systemd.unit=", "systemd.wants=", "systemd.mask=", "systemd.run", "systemd.debug", "systemd.verity",
    "systemd.mount-extra=",
)  # fmt: skip
"""Begin arguments by which another disk is mounted, or other programs of a verified one are run. kernel-parameters.txt,
kernel-command-line(7)."""
RESCUE: Final = frozenset({"single", "s", "1", "-s", "-b", "emergency", "rescue"})
"""Start a shell. systemd(1)."""

_WORD: Final = re.compile(rf'(?:"[^"]*(?:"|$)|[^{WHITE_SPACE}"])+')
_ABOUT_COMPOSEFS: Final = re.compile(r'"*composefs(?:[=.?"]|$)', re.IGNORECASE)
_COMPOSEFS: Final = re.compile(
    r"composefs(?P<key>\.digest)?=(?P<mark>\??)(?:v(?P<version>[12])-(?P<hash>sha256|sha512)-12:)?(?P<hex>[0-9a-f]+)"
)


def split(text: str) -> list[str]:
    """Return the words with their quotes; white space inside double quotes belongs to a word."""
    if not text.isascii():
        raise FormatError(
            "the kernel command line holds characters outside ASCII",
            hint="the kernel reads bytes, and takes some of these for spaces",
        )
    if "\0" in text:
        raise FormatError("the kernel command line holds a NUL")
    return _WORD.findall(text)


def join(words: Iterable[str]) -> str:
    """Return one line; `LimitError` where the kernel would cut it off."""
    listed = list(words)
    line = " ".join(listed)
    if not line.isprintable() or split(line) != listed:
        raise FormatError(
            f"kernel arguments that would not be read back as they are: {line!r}",
            hint="an argument with a space in it needs double quotes",
        )
    if len(line) >= COMMAND_LINE_SIZE:
        raise LimitError(f"the kernel command line has {len(line)} bytes, the kernel takes {COMMAND_LINE_SIZE - 1}")
    return line


def read_section(data: bytes) -> str:
    """Return the text of a UKI's `.cmdline`, up to its first NUL (dracut writes one), without a final newline."""
    try:
        return bytes(data).partition(b"\0")[0].decode("ascii").rstrip("\n")
    except UnicodeDecodeError as error:
        raise FormatError("the UKI's command line holds bytes outside ASCII") from error


_ROOT_HASH: Final = re.compile(r"roothash=(?P<hex>[0-9a-f]{64}|[0-9a-f]{128})")


@dataclass(frozen=True, slots=True)
class ComposefsArg:
    """The one argument that says which root file system may be booted."""

    digest: VerityDigest
    version: Literal[1, 2] | None = None
    """The EROFS format in `composefs.digest=v1-…`; None is the older `composefs=`, which every glue reads."""
    insecure: bool = False
    """`?`: verification is optional, which boots anything."""

    @classmethod
    def parse(cls, word: str) -> Self:
        match = _COMPOSEFS.fullmatch(word)
        if not match or (match["key"] is None) is not (match["version"] is None):
            raise FormatError(
                f"not a composefs argument: {word[:200]!r}", hint="composefs=HEX or composefs.digest=v1-sha256-12:HEX"
            )
        if len(match["hex"]) not in ({HEX_LENGTH[match["hash"]]} if match["hash"] else HEX_LENGTH.values()):
            raise FormatError(f"a composefs argument with a digest of the wrong length: {word[:200]!r}")
        version: Literal[1, 2] | None = {"1": 1, "2": 2}.get(match["version"] or "")  # type: ignore[assignment]
        return cls(VerityDigest.parse(match["hex"]), version, bool(match["mark"]))

    def __str__(self) -> str:
        mark = "?" if self.insecure else ""
        if self.version is None:
            return f"composefs={mark}{self.digest}"
        return f"composefs.digest={mark}v{self.version}-{self.digest.algorithm}-12:{self.digest}"


def find_composefs(words: Iterable[str]) -> list[ComposefsArg]:
    """Return every composefs argument, in order.

    One that is quoted, in capitals, malformed or without value is an error: another reader may see it differently.
    """
    return [ComposefsArg.parse(word) for word in words if _ABOUT_COMPOSEFS.match(word)]


def find_root_hashes(words: Iterable[str]) -> list[RootHash]:
    """Return every root hash of dm-verity for the root file system, without what is none.

    systemd-veritysetup-generator(8).
    """
    matches = (_ROOT_HASH.fullmatch(word) for word in words)
    return [RootHash.parse(match["hex"]) for match in matches if match]


def find_decisive(words: Iterable[str]) -> list[str]:
    """Return the words, besides composefs arguments, that decide what is booted."""
    plain = [(word, word.replace('"', "").replace("_", "-").lower()) for word in words]
    return [word for word, text in plain if text.startswith(DECISIVE) or text in RESCUE]
