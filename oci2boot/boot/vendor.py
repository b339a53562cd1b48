"""The vendor flow: a UKI that its vendor signed, untouched, and an addon that appends the composefs argument to it.

systemd-stub(7): addons lie in `<uki>.extra.d/`, are signed like the UKI, and count only for the kernel in `.uname`.
"""

from collections.abc import Sequence
from functools import cmp_to_key
from typing import Final

from oci2boot.boot import closing, glue
from oci2boot.boot.names import ADDON
from oci2boot.boot.payload import EFI_NAMES, find_efi_program
from oci2boot.boot.sealed import Uki, named_ukis, newer
from oci2boot.boot.uki import STUB_WITH_ADDONS, build_addon, stub_version
from oci2boot.errors import FlowError, ImageError
from oci2boot.formats import cpio, pe
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.tree.files import Read, show
from oci2boot.tree.model import Directory

PROMISE: Final = f"composefs{ADDON}"


def choose_vendor(ukis: Sequence[Uki], name: str | None) -> Uki:
    """Return the newest UKI that promises nothing by itself."""
    silent = [uki for uki in named_ukis(ukis, name) if not uki.about_composefs]
    if not silent:
        raise FlowError("the image has no UKI that an addon could give a composefs argument")
    return max(silent, key=cmp_to_key(newer))


def vendor_addon(tree: Directory, read: Read, uki: Uki, promise: ComposefsArg) -> tuple[bytes, tuple[str, ...]]:
    """Return the addon, unsigned, and notes; a UKI that would not keep the promise is refused."""
    data = read(uki.file)
    what = f"/{show(uki.path)}"
    version = stub_version(data)
    if version < STUB_WITH_ADDONS:
        raise ImageError(
            f"{what} has the systemd-stub {version or 'of unknown version'}, addons take {STUB_WITH_ADDONS} or newer"
        )
    if not uki.kernel_version:
        raise ImageError(f"{what} does not say which kernel is in it: an addon for it would be one for all")
    notes = [f"{way}; anyone may take the addon away" for way in _ways_around(data, what)]
    if not pe.parse(data).signed:
        notes.append(f"{uki.name} is not signed: under Secure Boot firmware refuses it")
    stub = find_efi_program(tree, read, f"addon{EFI_NAMES[uki.machine]}.efi.stub", "stub for addons")
    return build_addon(stub, str(promise), uki.kernel_version), tuple(notes)


def _ways_around(data: bytes, what: str) -> list[str]:
    """Say how the code in the UKI's initramfs may not keep the promise."""
    initramfs = b"".join(pe.contents(data, section) for section in pe.parse(data).sections_named(b".initrd")[:1])
    members = cpio.read(initramfs, glue.keep) if initramfs else {}
    if glue.brought_by(members) is None:
        raise FlowError(f"the initramfs in {what} knows nothing of composefs: the argument would have no effect")
    return [*glue.ways_around(members), *closing.ways_around(members)]
