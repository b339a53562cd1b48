"""The mode `verity` in a UKI: what its command line says of the root file system, and what its initramfs must bring.

systemd-veritysetup-generator(8), systemd-gpt-auto-generator(8), veritytab(5). The signature of the root hash is no part
of the UKI, or they could not be signed in one go: it lies beside it, where systemd-stub hands it to the initramfs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.boot.glue import PLACE, Archive, Glue, add_modules, add_own, add_programs, wire_systemd
from oci2boot.boot.initrd import OVERLAYS_FILE, SIGNATURE_REQUIRED, VERITY_DEBUG, BootMode, overlays_file
from oci2boot.boot.kernel import KernelSupport, check_verity_kernel
from oci2boot.boot.names import EXTRA
from oci2boot.errors import FormatError, ImageError, InitramfsError, ReadOnlyError
from oci2boot.formats import cmdline, cpio
from oci2boot.rootfs.dmverity import (
    DEBUG_ONLY,
    SIGNATURE_NAME,
    VerityOptions,
    VerityRootfs,
    check_sealed,
    merge_arguments,
    plain_word,
    verity_arguments,
    veritytab,
)
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory

_SYSTEMD: Final = b"usr/lib/systemd/"
_GENERATORS: Final = _SYSTEMD + b"system-generators/"
VERITYTAB: Final = b"etc/veritytab"
ROOT_HASH_FILE: Final = PLACE + b"root-hash"
"""What check-verity holds the kernel's word to."""


@dataclass(frozen=True, slots=True)
class DmVerityPromise:
    """A root file system in a partition of its own; its root hash, where it has one, guards it."""

    rootfs: VerityRootfs
    options: VerityOptions
    sealed: bool
    """Somebody signs for it, the root hash or the UKI."""

    @property
    def dm_verity(self) -> bool:
        return self.rootfs.root_hash is not None

    @property
    def mode(self) -> BootMode:
        return "verity" if self.dm_verity else "erofs"

    def check_kernel(self, tree: Directory, read: Read, version: str) -> KernelSupport:
        return check_verity_kernel(tree, read, version, self.options)

    def files(self) -> Mapping[bytes, bytes]:
        files = {OVERLAYS_FILE: overlays_file(self.options.overlays)}
        if self.dm_verity and self.options.signature:
            files[SIGNATURE_REQUIRED] = b"1\n"
        if self.dm_verity and DEBUG_ONLY.intersection(self.options.options):
            files[VERITY_DEBUG] = b"1\n"
        if self.dm_verity and self.options.form == "veritytab":
            files[VERITYTAB] = veritytab(self.rootfs, self.options)
        return files

    def plan_glue(
        self, tree: Directory, read: Read, initramfs: Mapping[bytes, cpio.Found], support: KernelSupport
    ) -> Glue:
        """Return what follows the image's own initramfs, which must be systemd's.

        Raises `ImageError` for one that would not find the root file system.
        """
        needed = [_SYSTEMD + b"systemd", _GENERATORS + b"systemd-fstab-generator"]
        if self.dm_verity:
            needed += [_GENERATORS + b"systemd-veritysetup-generator", _SYSTEMD + b"systemd-veritysetup"]
        for path in needed:
            if path not in initramfs and path.removeprefix(b"usr/") not in initramfs:
                name = path.rpartition(b"/")[2].decode()
                raise InitramfsError(f"the image's initramfs has no {name}")
        archive = Archive(initramfs)
        add_own(archive, ["setup-root"])
        for path, content in self.files().items():
            archive.add(cpio.file(path, content))
        overlaid = bool(self.options.overlays)
        more = [*([b"blkid"] if overlaid else []), *([b"dmsetup"] if self.dm_verity else [])]
        programs, notes = add_programs(archive, tree, read, more) if more else ((), ())
        if not overlaid:
            notes = ()  # nothing grows
        units = []
        if self.rootfs.root_hash is not None:
            add_own(archive, ["check-verity"])
            signed = " signed" if self.options.signature else ""
            archive.add(cpio.file(ROOT_HASH_FILE, f"{self.rootfs.root_hash}{signed}\n".encode()))
            units.append(b"oci2boot-check-verity.service")
        if overlaid:
            add_own(archive, ["setup-overlays", "grow"])
            units.append(b"oci2boot-setup-overlays.service")
        modules = add_modules(archive, tree, read, support)
        wire_systemd(archive, units, modules)
        return Glue(brought=None, archive=archive.pack(), arguments=(), modules=modules, programs=programs, notes=notes)

    def build_cmdline(self, image: Sequence[str], user: Sequence[str], added: Glue) -> str:
        """Return the UKI's command line: the image's words, the user's, and those of the root file system, each once.

        Raises `ImageError` for one that contradicts, or that readers would understand differently.
        """
        own = verity_arguments(self.rootfs, self.options)
        for words, origin in ((image, "the image's kernel arguments"), (user, "the arguments given")):
            try:
                merge_arguments(words, own)
            except FormatError as error:
                raise ImageError(f"{origin}: {error.message}", hint=error.hint) from error
        if any(plain_word(word) == "rw" for word in user):
            raise ReadOnlyError(
                "the argument rw: EROFS cannot be written", hint="an overlay makes a place that can be written"
            )
        # An image for other root file systems may well ask for `rw`, which systemd would try to obey.
        given = [word for word in (*image, *user) if plain_word(word) not in ("rw", "ro")]
        keys = {word.partition("=")[0] for word in given}
        given += [word for word in added.arguments if word.partition("=")[0] not in keys]
        merged = merge_arguments(given, own)
        asked = {option for word in merged for option in word.partition("=")[2].split(",")}
        if self.sealed:
            check_sealed(asked)
        if loose := sorted(DEBUG_ONLY & asked - set(self.options.options)):
            raise ImageError(
                f"the initramfs does not take {loose[0]} from the command line alone",
                hint="have it among the options of dm-verity: then the initramfs is told, too",
            )
        return cmdline.join(["ro", *merged])

    def told(self, _: Glue) -> tuple[Mapping[bytes, bytes], tuple[str, ...]]:
        return {}, ()


def signature_path(uki: str) -> str:
    """Return where on the ESP the root hash's signature lies for a UKI there. systemd-stub(7), "Companion Files"."""
    return f"{uki}{EXTRA}/{SIGNATURE_NAME}"
