"""UKIs, addons and other EFI executables as files: sign, verify, describe."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Self

from oci2boot.boot import pcr
from oci2boot.boot.names import MAX_UKI, is_program
from oci2boot.errors import Error, SignatureError, SourceError
from oci2boot.formats import authenticode, cmdline, pe
from oci2boot.formats.x509 import Certificate
from oci2boot.system.files import plain_errors, read_limited, write_atomically
from oci2boot.workflows.keys.signing import read_trusted, sign_files
from oci2boot.workflows.progress import Report
from oci2boot.workflows.requests import SigningOptions

MAX_SHOWN: Final = 64 << 10
"""Bytes of a section that are shown as text."""
TEXTS: Final = (b".osrel", b".cmdline", b".uname", b".sbat", b".profile")


def read_executable(path: Path) -> bytes:
    return read_limited(path, MAX_UKI)


def sign(source: Path, target: Path, options: SigningOptions, report: Report) -> None:
    """Write `source` with one more signature to `target`; with a request to be written, nothing else is."""
    name = source.name if is_program(source.name) else f"{source.name}.efi"
    signed = sign_files({name: read_executable(source)}, options, report)
    if options.request is None:
        with plain_errors(SourceError, f"write {target}"):
            write_atomically(target, signed[name])


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that holds."""

    signer: str
    issuer: str
    fingerprint: str
    not_after: str
    trusted_by: str | None
    """The certificate, of those given, that is behind it."""

    @classmethod
    def of(cls, found: authenticode.Signature) -> Self:
        signer, anchor = found.signer, found.anchor
        not_after = signer.not_after.isoformat()
        return cls(signer.subject, signer.issuer, signer.fingerprint, not_after, anchor.subject if anchor else None)


@dataclass(frozen=True, slots=True)
class Signed:
    signatures: tuple[Signature, ...]

    def to_json(self) -> dict[str, object]:
        return {"signatures": [asdict(signature) for signature in self.signatures]}


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    size: int
    profile: int | None
    """Of several: the sections after a `.profile` are its own, those before the first one are all profiles'."""
    sha256: str
    text: str | None
    """Of those that people read."""

    def to_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Pcr11:
    """What PCR 11 of a TPM will hold, in each phase of booting a profile."""

    profile: int
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """What stands where nothing could be found out."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """What is in an executable, and who signed it."""

    path: Path
    kind: Literal["UKI", "addon", "EFI executable"]
    machine: str
    size: int
    image_hash: bytes
    """That signatures are of."""
    sections: tuple[Section, ...]
    composefs: tuple[str, ...]
    """The arguments of all command lines."""
    pcr11: tuple[Pcr11, ...] | Problem
    """Of a UKI."""
    signatures: tuple[Signature, ...] | Problem

    def to_json(self) -> dict[str, object]:
        pcr11, signatures = self.pcr11, self.signatures
        return {
            "file": str(self.path),
            "kind": self.kind,
            "machine": self.machine,
            "size": self.size,
            "image_sha256": self.image_hash.hex(),
            "sections": [section.to_json() for section in self.sections],
            "composefs": list(self.composefs),
            "pcr11": [asdict(one) for one in ([pcr11] if isinstance(pcr11, Problem) else pcr11)],
            "signatures": [asdict(one) for one in ([signatures] if isinstance(signatures, Problem) else signatures)],
        }


def verify(path: Path, trusted: Sequence[Path]) -> Signed:
    """Return the signatures of an executable, after checking each; one must be by a given certificate, if any is given.

    Raises `SignatureError` where firmware with these certificates in db would not start it.
    """
    anchors = read_trusted(list(trusted))
    found = authenticode.verify(read_executable(path), anchors)
    if not found:
        raise SignatureError(f"{path} is not signed")
    if anchors and not any(signature.anchor for signature in found):
        signers = ", ".join(signature.signer.subject for signature in found)
        raise SignatureError(
            f"{path} is signed by {signers}, and by none of the certificates given",
            hint="firmware with these in db refuses it",
        )
    return Signed(tuple(map(Signature.of, found)))


def describe(path: Path, trusted: Sequence[Path] = ()) -> Executable:
    """Say what is in an executable: sections, command lines, what they promise, and who signed it."""
    data = read_executable(path)
    headers = pe.parse(data)
    kind = _kind(headers)
    return Executable(
        path=path,
        kind=kind,
        machine=headers.machine,
        size=len(data),
        image_hash=authenticode.image_hash(data),
        sections=tuple(_sections(data, headers)),
        composefs=tuple(_promises(data, headers)),
        pcr11=_pcr11(data) if kind == "UKI" else (),
        signatures=_signatures(data, read_trusted(list(trusted))),
    )


def _kind(headers: pe.Pe) -> Literal["UKI", "addon", "EFI executable"]:
    names = {section.name for section in headers.sections}
    if b".linux" in names:
        return "UKI"
    return "addon" if b".cmdline" in names and b".osrel" not in names else "EFI executable"


def _sections(data: bytes, headers: pe.Pe) -> Iterator[Section]:
    profile: int | None = None
    for section in headers.sections:
        if section.name == b".profile":
            profile = 0 if profile is None else profile + 1
        content = pe.contents(data, section)
        shown = section.name in TEXTS and len(content) <= MAX_SHOWN
        text = content.partition(b"\0")[0].decode(errors="replace") if shown else None
        yield Section(section.name.decode(), len(content), profile, hashlib.sha256(content).hexdigest(), text)


def _promises(data: bytes, headers: pe.Pe) -> Iterator[str]:
    """Yield the composefs arguments of all command lines; one that readers could see differently is an error."""
    for section in headers.sections_named(b".cmdline"):
        for argument in cmdline.find_composefs(cmdline.split(cmdline.read_section(pe.contents(data, section)))):
            yield str(argument)


def _pcr11(data: bytes) -> tuple[Pcr11, ...] | Problem:
    try:
        values = [pcr.uki_pcr(data, number) for number in range(pcr.count_profiles(data))]
    except Error as error:
        return Problem(error.message)
    return tuple(Pcr11(number, dict(pcr.by_phase(value))) for number, value in enumerate(values))


def _signatures(data: bytes, trusted: Sequence[Certificate]) -> tuple[Signature, ...] | Problem:
    try:
        return tuple(map(Signature.of, authenticode.verify(data, trusted)))
    except Error as error:
        return Problem(error.message)
