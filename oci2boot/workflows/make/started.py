"""What starts a signed UKI: signed with it where it is made, and looked at where it is installed.

Under Secure Boot the firmware checks the boot loader first. A UKI whose loader it refuses is never read, however well
that one is signed.
"""

from collections.abc import Mapping
from typing import Final

from oci2boot.boot.loader import find_shippable
from oci2boot.boot.names import LINUX, is_program
from oci2boot.errors import ImageError, LoaderError
from oci2boot.formats import authenticode
from oci2boot.formats.x509 import Certificate
from oci2boot.tree.model import Directory
from oci2boot.workflows.keys.signing import read_certificate, read_trusted
from oci2boot.workflows.make.canonical import Read
from oci2boot.workflows.make.payload import BootFiles
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import BootOptions

REFUSED: Final = "under Secure Boot the firmware would refuse it, and never come to the UKI, which is signed"
REMOVABLE: Final = "EFI/BOOT/BOOT"
"""How the program begins that the firmware starts by itself; here it is shim, if there is one."""
MOK_MANAGER: Final = "EFI/BOOT/mm"
HINT: Final = "`oci2boot seal` with the key puts a signed one beside the UKI"


def loader_to_sign(
    tree: Directory, read: Read, architecture: str, options: BootOptions, report: Report
) -> Mapping[str, bytes]:
    """Return what a machine without a key needs beside a signed UKI, by path beneath /boot; nothing without a signer.

    An image without systemd-boot may be for a machine that has its own loader: only a warning.
    """
    if options.signing is None:
        return {}
    try:
        return find_shippable(tree, read, architecture, options.loader)
    except ImageError as error:
        if options.loader != "systemd-boot":
            raise
        report(Warned(f"{error.message}: the UKI is signed, and nothing that starts it comes with it"))
        return {}


def check_started(files: BootFiles, options: BootOptions) -> None:
    """Refuse a boot loader that firmware with the --db certificates would, where the UKI that it is to start is signed.

    Without certificates, `lint` warns of one that nobody signed. Who is behind a shim, the firmware knows: here it has
    to be signed at all.
    """
    waiting = options.signing is not None and options.signing.request is not None
    if files.esp is None or files.flow == "type1" or waiting or not options.db:
        return
    programs = {path: data for path, data in files.esp.items() if is_program(path)}
    starters = [path for path in programs if not path.startswith((f"{LINUX}/", MOK_MANAGER))]
    if not any(path.startswith(f"{LINUX}/") and authenticode.verify(data) for path, data in programs.items()):
        return
    anchors = _trusted(options)
    for path in sorted(starters):
        found = authenticode.verify(programs[path], anchors)
        by_shim = options.loader == "shim" and path.startswith(REMOVABLE)
        if not found or not (by_shim or any(signature.anchor for signature in found)):
            signers = ", ".join(signature.signer.subject for signature in found)
            said = f"is signed by {signers}, by none of the --db certificates" if found else "is unsigned"
            raise LoaderError(f"{path} {said}: {REFUSED}", hint=HINT)


def _trusted(options: BootOptions) -> list[Certificate]:
    own = [read_certificate(options.signing.certificate)] if options.signing else []
    return [*read_trusted(list(options.db)), *own]
