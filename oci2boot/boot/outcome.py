"""What came out for a machine to boot: whose UKI promises the image, and who signed it.

A machine remembers it, and demands as much of the next image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, get_args

from oci2boot.boot.names import is_addon, is_program
from oci2boot.boot.sealed import read_addon, read_head
from oci2boot.errors import FormatError
from oci2boot.formats import authenticode, cmdline
from oci2boot.formats.x509 import Certificate

Kind = Literal["type1", "local", "vendor", "sealed"]
"""Each is more than those before: nothing signs a type 1 entry; what the machine's own key signs, the machine can make;
a vendor's UKI is told the image by the machine's addon; a sealed one has been told by who built the image."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MAX_SIGNERS: Final = 16
MAX_TEXT: Final = 1024


@dataclass(frozen=True, slots=True)
class Signer:
    subject: str
    """For people: anyone can make a certificate with it."""
    key: str
    """SHA-256 of the public key: it stays when a certificate is renewed."""
    anchor: str | None = None
    """SHA-256 of the trusted certificate that is behind it, of those that somebody named."""

    @classmethod
    def of(cls, signature: authenticode.Signature) -> Self:
        anchor = signature.anchor
        return cls(signature.signer.subject[:MAX_TEXT], signature.signer.key_id, anchor.fingerprint if anchor else None)

    @classmethod
    def parse(cls, found: Any) -> Self:
        subject, key, anchor = found["subject"], found["key"], found.get("anchor")
        if not isinstance(subject, str) or not isinstance(key, str) or not isinstance(anchor, str | None):
            raise TypeError
        return cls(subject[:MAX_TEXT], key, anchor)

    def to_json(self) -> dict[str, Any]:
        return {"subject": self.subject, "key": self.key, "anchor": self.anchor}


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    signers: tuple[Signer, ...] = ()
    """Of the UKI; nobody where it is not signed."""
    addon: tuple[Signer, ...] = ()
    """Of the addon by which a vendor's UKI is told the image."""
    before: "Outcome | None" = None
    """What the machine had, and somebody gave up for this."""

    @classmethod
    def of(cls, kind: Kind, files: Mapping[str, bytes], trusted: Sequence[Certificate] = ()) -> Self:
        """Look at what is to be on the ESP. Raises `SignatureError` where a signature does not hold."""
        programs = {path: data for path, data in files.items() if is_program(path)}
        promising = [
            data
            for path, data in programs.items()
            if is_addon(path) and cmdline.find_composefs(cmdline.split(read_addon(data)))
        ]
        ukis = [data for path, data in programs.items() if not is_addon(path) and read_head(data)]
        return cls(
            kind,
            _signers(ukis, trusted) if kind != "type1" else (),
            _signers(promising, trusted) if kind == "vendor" else (),
        )

    @classmethod
    def from_json(cls, found: Any, depth: int = 0) -> Self:
        """Return what `to_json` gave."""
        try:
            if found["kind"] not in KINDS or depth > 1:
                raise ValueError
            signers, addon = found["signers"], found.get("addon", [])
            if not isinstance(signers, list) or not isinstance(addon, list) or len(signers) + len(addon) > MAX_SIGNERS:
                raise TypeError
            before = found.get("before")
            return cls(
                found["kind"],
                tuple(map(Signer.parse, signers)),
                tuple(map(Signer.parse, addon)),
                cls.from_json(before, depth + 1) if before is not None else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                "what the machine remembers of its image's signatures cannot be read", hint="install the image again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "signers": [one.to_json() for one in self.signers],
            "addon": [one.to_json() for one in self.addon],
            "before": replace(self.before, before=None).to_json() if self.before else None,
        }

    def __str__(self) -> str:
        by = " and ".join(dict.fromkeys(one.subject for one in (*self.signers, *self.addon)))
        return f"{self.kind}, signed by {by or 'nobody'}"

    def weaker_than(self, other: "Outcome") -> bool:
        unsigned = bool(other.signers) and not self.signers
        # A sealed UKI has the promise itself, and needs no addon that brings it.
        unsigned |= self.kind == "vendor" and bool(other.addon) and not self.addon
        return unsigned or KINDS.index(self.kind) < KINDS.index(other.kind)

    def same_signers(self, other: "Outcome") -> bool:
        """Tell whether one of those who signed the other signed this too, where both are signed."""
        pairs = [(self.signers, other.signers), (self.addon, other.addon)]
        return all(same_key(mine, theirs) for mine, theirs in pairs if mine and theirs)


def _signers(programs: Iterable[bytes], trusted: Sequence[Certificate]) -> tuple[Signer, ...]:
    """Return who signed every one of the programs."""
    found = [[Signer.of(one) for one in authenticode.verify(data, trusted)] for data in programs]
    return tuple(dict.fromkeys(one for one in found[0] if all(one in others for others in found))) if found else ()


def same_key(mine: Sequence[Signer], theirs: Sequence[Signer]) -> bool:
    return any(
        one.key == other.key or (one.anchor is not None and one.anchor == other.anchor)
        for one in mine
        for other in theirs
    )
