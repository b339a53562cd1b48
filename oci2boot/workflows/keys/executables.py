"""UKIs, addons and other EFI executables as files: sign, verify, describe."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

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


def verify(path: Path, trusted: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the signatures of an executable, all of which hold; with certificates given, one of these must be behind.

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
    return [_signature_json(signature) for signature in found]


def _signature_json(signature: authenticode.Signature) -> dict[str, Any]:
    signer = signature.signer
    return {
        "signer": signer.subject,
        "issuer": signer.issuer,
        "fingerprint": signer.fingerprint,
        "not_after": signer.not_after.isoformat(),
        "trusted_by": signature.anchor.subject if signature.anchor else None,
    }


def describe(path: Path, trusted: Sequence[Path] = ()) -> dict[str, Any]:
    """Say what is in an executable: sections, command lines, what they promise, and who signed it."""
    data = read_executable(path)
    headers = pe.parse(data)
    return {
        "file": str(path),
        "kind": _kind(headers),
        "machine": headers.machine,
        "size": len(data),
        "image_sha256": authenticode.image_hash(data).hex(),
        "sections": _sections(data, headers),
        "composefs": _promises(data, headers),
        "pcr11": _pcr11(data) if _kind(headers) == "UKI" else [],
        "signatures": _signatures(data, read_trusted(list(trusted))),
    }


def _kind(headers: pe.Pe) -> str:
    names = {section.name for section in headers.sections}
    if b".linux" in names:
        return "UKI"
    return "addon" if b".cmdline" in names and b".osrel" not in names else "EFI executable"


def _sections(data: bytes, headers: pe.Pe) -> list[dict[str, Any]]:
    """Sections after a `.profile` belong to that profile, those before the first one to all."""
    found: list[dict[str, Any]] = []
    profile: int | None = None
    for section in headers.sections:
        if section.name == b".profile":
            profile = 0 if profile is None else profile + 1
        content = pe.contents(data, section)
        one: dict[str, Any] = {"name": section.name.decode(), "size": len(content)}
        if profile is not None:
            one["profile"] = profile
        one["sha256"] = hashlib.sha256(content).hexdigest()
        if section.name in TEXTS and len(content) <= MAX_SHOWN:
            one["text"] = content.partition(b"\0")[0].decode(errors="replace")
        found.append(one)
    return found


def _promises(data: bytes, headers: pe.Pe) -> list[str]:
    """Return the composefs arguments of all command lines; one that readers could see differently is an error."""
    return [
        str(argument)
        for section in headers.sections_named(b".cmdline")
        for argument in cmdline.find_composefs(cmdline.split(cmdline.read_section(pe.contents(data, section))))
    ]


def _pcr11(data: bytes) -> list[dict[str, Any]]:
    """Return what a TPM's PCR 11 will hold in each phase of booting each profile."""
    try:
        values = [pcr.uki_pcr(data, number) for number in range(pcr.count_profiles(data))]
    except Error as error:
        return [{"problem": error.message}]
    return [{"profile": number, "sha256": dict(pcr.by_phase(value))} for number, value in enumerate(values)]


def _signatures(data: bytes, trusted: Sequence[Certificate]) -> list[dict[str, Any]]:
    try:
        return [_signature_json(signature) for signature in authenticode.verify(data, trusted)]
    except Error as error:
        return [{"problem": error.message}]
