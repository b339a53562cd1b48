"""What a UKI promises of its root file system, and what kernel, initramfs and command line must bring to keep it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from oci2boot.boot import discover, glue
from oci2boot.boot.initrd import BootMode
from oci2boot.boot.kernel import KernelSupport, check_kernel
from oci2boot.boot.told import DIGEST_FILE, OWN, READ_FILE, ReadMode
from oci2boot.errors import ImageError
from oci2boot.formats import cpio
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory


class RootPromise(Protocol):
    """One for each mode: `ComposefsPromise` here, `DmVerityPromise` in `dmverity`."""

    @property
    def mode(self) -> BootMode:
        """What the built-in initramfs is to do."""

    @property
    def dm_verity(self) -> bool:
        """Whether the initramfs has to set up a dm-verity device."""

    def check_kernel(self, tree: Directory, read: Read, version: str) -> KernelSupport:
        """Raise `ImageError` for a kernel that cannot keep the promise."""

    def files(self) -> Mapping[bytes, bytes]:
        """Return what an initramfs is told by files, which are measured and signed with it."""

    def plan_glue(
        self, tree: Directory, read: Read, initramfs: Mapping[bytes, cpio.Found], support: KernelSupport
    ) -> glue.Glue:
        """Return what follows the image's own initramfs, as `cpio.read` gives it."""

    def build_cmdline(self, image: Sequence[str], user: Sequence[str], added: glue.Glue) -> str:
        """Return the UKI's command line: the image's words, the user's, and the promise, each once."""

    def told(self, added: glue.Glue) -> tuple[Mapping[bytes, bytes], tuple[str, ...]]:
        """Return what any initramfs is told by an archive behind it, and notes."""


@dataclass(frozen=True, slots=True)
class ComposefsPromise:
    """The digest of a composefs image, as one kernel argument, or more of them: the same root file system each time."""

    argument: ComposefsArg
    also: tuple[ComposefsArg, ...] = ()
    """By other digests. The initramfs has them all, and takes no other."""
    mode: BootMode = "composefs"
    dm_verity: bool = False
    in_initramfs: bool = False
    """The initramfs has the digest too: for a command line that nothing signs."""
    read: ReadMode = "ahead"
    by_label: bool = False
    """The boot loader does not say which disk it started from, by which systemd would find the root partition."""

    @property
    def arguments(self) -> tuple[ComposefsArg, ...]:
        return self.argument, *self.also

    def check_kernel(self, tree: Directory, read: Read, version: str) -> KernelSupport:
        return check_kernel(tree, read, version)

    def files(self) -> Mapping[bytes, bytes]:
        return {}

    def plan_glue(
        self, tree: Directory, read: Read, initramfs: Mapping[bytes, cpio.Found], support: KernelSupport
    ) -> glue.Glue:
        return glue.plan_glue(tree, read, initramfs, support)

    def build_cmdline(self, image: Sequence[str], user: Sequence[str], added: glue.Glue) -> str:
        for argument in self.arguments:
            added.configuration.check(argument)
        # Some read the first root=, some the last, and the built-in initramfs refuses two.
        keys = {word.partition("=")[0] for word in (*image, *user)}
        found = [*added.arguments, *([f"root=LABEL={glue.ROOT_LABEL}"] if self.by_label else [])]
        absent = [word for word in dict.fromkeys(found) if word.partition("=")[0] not in keys]
        return discover.build_cmdline([*image, *absent], user, self.arguments)

    def told(self, added: glue.Glue) -> tuple[Mapping[bytes, bytes], tuple[str, ...]]:
        files, notes = {}, []
        if self.read == "on-demand":
            if self.argument.insecure:
                raise ImageError(
                    f"{self.argument} makes fs-verity optional, and without it nothing verifies what is read on demand",
                    hint="demand fs-verity, or have the rootfs image read ahead",
                )
            files[READ_FILE] = b"on-demand\n"
        # A digest without fs-verity promises nothing: only the command line, where it shows, may say so.
        if self.also and self.argument.insecure:
            raise ImageError(
                f"{self.argument} makes fs-verity optional, and one of several digests must not",
                hint="demand fs-verity, or promise one digest",
            )
        if (self.in_initramfs or self.also) and not self.argument.insecure:
            files[DIGEST_FILE] = "".join(f"{argument.digest}\n" for argument in self.arguments).encode()
        if files and added.brought not in OWN:
            notes.append(
                f"the glue in the image's initramfs, {added.brought}, takes its promise from the command line alone, "
                "and reads the rootfs image as it likes"
            )
        return files, tuple(notes)
