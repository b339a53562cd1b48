"""What a machine's firmware starts under Secure Boot, and what shim behind it. UEFI 2.10, 32.5.3; shim, MokVars.txt.

Of a signed image every signature is looked at, and one that is revoked is enough to refuse it, as in EDK2.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from oci2boot.errors import Error, FormatError
from oci2boot.formats import authenticode, esl, sbat
from oci2boot.formats.esl import Entry
from oci2boot.formats.sbat import Entry as Component
from oci2boot.formats.x509 import Certificate, find_anchor

GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECURITY: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SHIM: Final = "605dab50-e046-4300-abb6-3dd810dd8b23"
"""Vendors of variables, as their names end in."""
MAX_PARTS: Final = 64
"""Variables that shim spreads one list over."""

ReadVariable = Callable[[str, str], bytes | None]
"""Name and vendor → value."""


@dataclass(frozen=True, slots=True)
class Keys:
    """One list of what may start, and one of what may not."""

    allowed: tuple[Entry, ...]
    revoked: tuple[Entry, ...]

    @classmethod
    def parse(cls, allowed: bytes, revoked: bytes) -> Self:
        return cls(tuple(esl.parse_esl(allowed)), tuple(esl.parse_esl(revoked)))

    def unknown(self) -> list[uuid.UUID]:
        """Return kinds of revocations that are not understood here."""
        known = {esl.X509, *esl.IMAGE_HASHES, *esl.X509_HASHES}
        return sorted({entry.kind for entry in self.revoked if entry.kind not in known})

    def revokes(self, program: bytes, signatures: Sequence[authenticode.Signature]) -> str | None:
        """Return what is revoked, if anything is."""
        kinds = {entry.kind for entry in self.revoked} & esl.IMAGE_HASHES.keys()
        digests = {kind: authenticode.image_hash(program, esl.IMAGE_HASHES[kind]) for kind in kinds}
        for entry in self.revoked:
            if entry.data == digests.get(entry.kind):
                return f"the image with the hash {entry.data.hex()}"
        certificates = list(_certificates(self.revoked))
        for signature in signatures:
            others = signature.signed_data.certificates
            if found := find_anchor(signature.signer, others, certificates):
                return f"the certificate of {found.subject}"
            for one in (signature.signer, *others, *_certificates(self.allowed)):
                chained = one in (signature.signer, *others) or find_anchor(signature.signer, others, [one])
                if chained and self._revokes_hash(one):
                    return f"the certificate of {one.subject}"
        return None

    def _revokes_hash(self, certificate: Certificate) -> bool:
        for entry in self.revoked:
            if name := esl.X509_HASHES.get(entry.kind):
                # A time follows; what carries no proof of when it was signed is revoked at any.
                digest = hashlib.new(name, certificate.to_be_signed).digest()
                if entry.data[: len(digest)] == digest:
                    return True
        return False

    def allows(self, digest: bytes, signatures: Sequence[authenticode.Signature]) -> bool:
        if any(entry.kind == esl.SHA256 and entry.data == digest for entry in self.allowed):
            return True
        trusted = list(_certificates(self.allowed))
        return any(find_anchor(one.signer, one.signed_data.certificates, trusted) for one in signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """Under Secure Boot; without it, there is nothing to say."""

    keys: Keys
    shim: Keys | None
    """Of the machine's owner and shim's vendor; None where shim did not start what runs."""
    level: tuple[Component, ...]
    """What shim takes for revoked, by SBAT."""
    shim_checks: bool
    """False where its owner told shim to check nothing."""

    @classmethod
    def read(cls, read: ReadVariable) -> Self | None:
        """Return None where Secure Boot is off."""
        if read("SecureBoot", GLOBAL) != b"\1":
            return None
        moks, level = _parts(read, "MokListRT"), read("SbatLevelRT", SHIM)
        started = moks is not None or level is not None
        return cls(
            keys=Keys.parse(read("db", SECURITY) or b"", read("dbx", SECURITY) or b""),
            shim=Keys.parse(moks or b"", _parts(read, "MokListXRT") or b"") if started else None,
            level=tuple(sbat.parse_level(level)) if level else (),
            shim_checks=read("MokSBStateRT", SHIM) != b"\1",
        )

    def refuses(self, program: bytes, *, first: bool, behind_shim: bool) -> str | None:
        """Return why a program would not start, None where it would.

        `first` is what the firmware itself starts, and `behind_shim` tells that this, or what starts it, is a shim.
        """
        if behind_shim and not first and not self.shim_checks:
            return None
        digest = authenticode.image_hash(program)
        try:
            signatures = authenticode.verify(program)
        except Error as error:
            return error.message
        lists = [self.keys, *([self.shim] if self.shim and behind_shim and not first else [])]
        for one in lists:
            if what := one.revokes(program, signatures):
                return f"the firmware has revoked {what}"
        if behind_shim and (why := self._below_level(program)):
            return why
        # A shim that did not start what runs keeps its keys to itself.
        told = first or not behind_shim or self.shim is not None
        if told and not any(one.allows(digest, signatures) for one in lists):
            signers = " and ".join(dict.fromkeys(signature.signer.subject for signature in signatures))
            known = "; ".join(one.subject for keys in lists for one in _certificates(keys.allowed)) or "nobody"
            return f"it is signed by {signers or 'nobody'}, and the firmware trusts {known}"
        return None

    def _below_level(self, program: bytes) -> str | None:
        entries = sbat.read_entries(program)
        if not entries:
            return "it has no section .sbat, and shim refuses to start it"
        least = {entry.component: entry.generation for entry in self.level}
        for entry in entries:
            if entry.generation < least.get(entry.component, 0):
                return f"it is {entry}, and generations below {least[entry.component]} are revoked"
        return None


def _parts(read: ReadVariable, name: str) -> bytes | None:
    """Return a list of shim's: where one variable cannot hold it, it goes on in others with numbers in their names."""
    found = [read(name, SHIM)]
    for number in range(MAX_PARTS):
        part = read(f"{name}{number}", SHIM)
        if part is None and number:
            break
        found.append(part)
    given = [part for part in found if part is not None]
    return b"".join(dict.fromkeys(given)) if given else None


def _certificates(entries: Sequence[Entry]) -> Iterator[Certificate]:
    """Yield those that can be read: one that cannot be vouches for nothing."""
    for entry in entries:
        if entry.kind == esl.X509:
            try:
                yield Certificate.parse(entry.data)
            except FormatError:
                continue
