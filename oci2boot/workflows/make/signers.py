"""Who signed what an image boots with: held to the certificates that the user names, and kept for its next version."""

from contextlib import suppress
from typing import Final

from oci2boot.boot.names import is_program
from oci2boot.boot.outcome import Kind, Outcome
from oci2boot.boot.sealed import read_head
from oci2boot.errors import Error, SignatureError
from oci2boot.formats import authenticode, os_release
from oci2boot.store.images import Flow
from oci2boot.workflows.keys.signing import read_certificate, read_trusted
from oci2boot.workflows.make.payload import BootFiles
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import BootOptions

OTHERS: Final = ("EFI/BOOT/BOOT", "EFI/BOOT/mm")
"""With a shim: it and its MokManager, which the firmware's own certificates are behind, or shim's."""


def check_db(files: BootFiles, options: BootOptions) -> None:
    """Refuse what firmware with the named certificates in db would: UKI, addons and boot loader.

    What is signed here is as good, by a certificate that the user named too; but one of the others must be behind
    something, or it was named in vain.
    """
    named = read_trusted(list(options.db))
    if not named:
        return
    signing = options.signing
    trusted = [*named, *([read_certificate(signing.certificate)] if signing else [])]
    covered = False
    for path, data in sorted((files.esp or {}).items()):
        if not is_program(path) or (signing and signing.request and path not in files.finished):
            continue  # not signed yet
        if options.loader == "shim" and path.startswith(OTHERS):
            continue
        found = authenticode.verify(data, trusted)
        if not any(signature.anchor for signature in found):
            signers = ", ".join(signature.signer.subject for signature in found)
            raise SignatureError(
                f"{path} is signed by {signers}, and by none of the --db certificates"
                if found
                else f"{path} is unsigned"
            )
        covered = covered or any(signature.anchor in named for signature in found)
    if not covered:
        promised = ", ".join(certificate.subject for certificate in named)
        raise SignatureError(
            f"nothing that would be installed is signed by {promised}, the --db certificates",
            hint="leave --db out, or take an image that brings a UKI with such a signature",
        )


def kind_of(flow: Flow) -> Kind:
    """Return what a flow comes to: what another boot loader loads is signed by nobody that we know, as type 1 is."""
    match flow:
        case "files" | "aboot":
            return "type1"
        case _:
            return flow


def warn_of_undated(files: BootFiles, report: Report) -> None:
    """Say so where a machine could not tell an older version of the image from a newer one."""
    for path, data in sorted((files.esp or {}).items()):
        with suppress(Error):  # what cannot be read, `outcome_of` tells of
            head = read_head(data) if is_program(path) else None
            if head and not os_release.parse(head.os_release).get("IMAGE_VERSION"):
                said = "has no IMAGE_VERSION in its os-release: no machine can refuse an older image in its place"
                report(Warned(f"{path} {said}"))


def outcome_of(files: BootFiles, options: BootOptions | None, report: Report) -> Outcome:
    """Return what came out; a signature that does not hold is none, and is told."""
    try:
        return Outcome.of(kind_of(files.flow), files.esp or {}, read_trusted(list(options.db)) if options else ())
    except Error as error:
        report(Warned(f"who signed the UKI cannot be told: {error.message}"))
        return Outcome(kind_of(files.flow))
