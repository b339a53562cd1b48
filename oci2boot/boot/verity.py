"""The mode `verity` in a UKI: what its command line says of the root file system, and what its initramfs must bring.

systemd-veritysetup-generator(8), systemd-gpt-auto-generator(8), veritytab(5). The signature of the root hash is no part
of the UKI, or they could not be signed in one go: it lies beside it, where systemd-stub hands it to the initramfs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.boot.glue import Glue
from oci2boot.boot.kernel import module_name
from oci2boot.errors import FormatError, ImageError
from oci2boot.formats import cmdline, cpio
from oci2boot.rootfs.verity import (
    SIGNATURE_NAME,
    VerityOptions,
    VerityRootfs,
    check_sealed,
    merge_arguments,
    plain_word,
    verity_arguments,
    veritytab,
)

_SYSTEMD: Final = b"usr/lib/systemd/"
_GENERATORS: Final = _SYSTEMD + b"system-generators/"
VERITYTAB: Final = b"etc/veritytab"
BUILTIN_HINT: Final = "--initrd builtin makes one of the image's files that has it"


@dataclass(frozen=True, slots=True)
class VerityRoot:
    """A root file system that a UKI is to boot."""

    rootfs: VerityRootfs
    options: VerityOptions
    sealed: bool
    """Somebody signs for it, the root hash or the UKI."""

    @property
    def guarded(self) -> bool:
        return self.rootfs.root_hash is not None


def signature_path(uki: str) -> str:
    """Return where on the ESP the root hash's signature lies for a UKI there. systemd-stub(7), "Companion Files"."""
    return f"{uki}.extra.d/{SIGNATURE_NAME}"


def build_cmdline(image: Sequence[str], user: Sequence[str], root: VerityRoot) -> str:
    """Return the UKI's command line: the image's words, the user's, and those of the root file system, each once.

    Raises `ImageError` for one that contradicts, or that readers would understand differently.
    """
    own = verity_arguments(root.rootfs, root.options)
    for words, origin in ((image, "the image's kernel arguments"), (user, "--karg")):
        try:
            merge_arguments(words, own)
        except FormatError as error:
            raise ImageError(f"{origin}: {error.message}", hint=error.hint) from error
    if any(plain_word(word) == "rw" for word in user):
        raise ImageError("--karg rw: EROFS cannot be written", hint="--overlay /PATH makes a place that can be")
    # An image for other root file systems may well ask for `rw`, which systemd would try to obey.
    given = [word for word in (*image, *user) if plain_word(word) not in ("rw", "ro")]
    merged = merge_arguments(given, own)
    if root.sealed:
        check_sealed(option for word in merged for option in word.partition("=")[2].split(","))
    return cmdline.join(["ro", *merged])


def plan_verity_glue(initramfs: Mapping[bytes, cpio.Found], builtin: frozenset[str], root: VerityRoot) -> Glue:
    """Return what follows the image's own initramfs; `builtin` are the modules that are part of the kernel.

    Raises `ImageError` for an initramfs that would not find the root file system.
    """
    needed = {"erofs": "the root file system is EROFS"}
    programs = [_GENERATORS + b"systemd-gpt-auto-generator"]
    if root.guarded:
        needed["dm_verity"] = "dm-verity guards the root file system"
        programs = [_GENERATORS + b"systemd-veritysetup-generator", _SYSTEMD + b"systemd-veritysetup"]
    there = {module_name(path) for path in initramfs if b".ko" in path} | builtin
    for path in programs:
        if path not in initramfs and path.removeprefix(b"usr/") not in initramfs:
            name = path.rpartition(b"/")[2].decode()
            raise ImageError(f"the image's initramfs has no {name}", hint=BUILTIN_HINT)
    for module, reason in needed.items():
        if module not in there:
            raise ImageError(f"the image's initramfs has no module {module}, and {reason}", hint=BUILTIN_HINT)
    members = [cpio.file(VERITYTAB, veritytab(root.rootfs, root.options))] if root.options.form == "veritytab" else []
    return Glue("systemd", cpio.write([cpio.directory(b"etc"), *members]) if members else b"")
