"""UKIs of the image itself: the sealed flow finds the one that promises the image, by any rules and format that its
arguments may mean; the vendor flow adds the promise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Final

from oci2boot.boot import glue
from oci2boot.boot.budget import Sizes, check_budget, sizes_of_uki
from oci2boot.boot.glue import PLACE
from oci2boot.boot.layers import UkiLayers
from oci2boot.boot.names import EXTRA
from oci2boot.boot.payload import machine_of
from oci2boot.boot.sealed import Sealed, Uki, Variant, choose_sealed, named_ukis
from oci2boot.boot.told import DIGEST_FILE
from oci2boot.boot.vendor import PROMISE, vendor_addon
from oci2boot.digest import OTHER_HASH, Hash, VerityDigest
from oci2boot.errors import Error, ImageError
from oci2boot.formats import cpio, pe
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.formats.file_contexts.specs import Rules
from oci2boot.rootfs.composefs import Rootfs
from oci2boot.tree.model import Directory
from oci2boot.tree.prepare import Xattrs
from oci2boot.workflows.make.canonical import Read
from oci2boot.workflows.make.payload import BootFiles
from oci2boot.workflows.make.rules import Workbench, rules_of
from oci2boot.workflows.make.shipped import Shipped
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import BootOptions, ErofsVersion, TreeOptions

VERSIONS: Final[tuple[ErofsVersion, ...]] = (1, 2, 0)
SELINUX_RULES: Final[tuple[Rules, ...]] = ("libselinux", "composefs-rs")
XATTRS: Final[tuple[Xattrs, ...]] = ("allowlist-only", "keep-user")


class Digests:
    """The digests of one image under every rule that a UKI may mean, each computed when it is asked for."""

    def __init__(
        self,
        bench: Workbench,
        rules: TreeOptions,
        algorithm: Hash,
        own: Callable[[], tuple[Directory, Rootfs]],
        shipped: Shipped,
    ) -> None:
        """Take the merged tree on its bench, and what computes it by the rules that the user asked for.

        `algorithm` is the store's, by which the tree names contents; `shipped` spares computing what came along.
        """
        self.rules = rules
        self.algorithm: Hash = algorithm
        self._bench = bench
        self._own = own
        self._shipped = shipped

    @cached_property
    def asked(self) -> Rootfs:
        """By the rules that the user asked for."""
        tree, rootfs = self._own()
        self._bench.know(rules_of(self.rules, self.algorithm), tree, rootfs)
        return rootfs

    def options_of(self, variant: Variant) -> TreeOptions:
        return replace(
            self.rules,
            erofs_version=variant.version,
            selinux_rules=variant.selinux_rules,
            xattrs=variant.xattrs,
        )

    def other(self) -> VerityDigest:
        """Return the digest by the rules that were asked for, and the hash that the store does not have."""
        return self._bench.digest(rules_of(self.rules, OTHER_HASH[self.algorithm]))

    def came_along(self, variant: Variant) -> bool:
        """Say whether the image itself brings the composefs image of these rules."""
        return self._shipped.find(variant.digest) is not None

    def rootfs(self, variant: Variant) -> Rootfs:
        """Return the composefs image of rules that `variant_of` found."""
        if taken := self._shipped.find(variant.digest):
            return taken[0]
        return self._bench.rootfs(rules_of(self.options_of(variant), self.algorithm))

    def variant_of(self, argument: ComposefsArg) -> Variant | None:
        """Return the rules by which this image is what the argument promises."""
        if taken := self._shipped.find(argument.digest):
            rootfs, options = taken
            if argument.version in (None, rootfs.version):
                return Variant(argument.digest, rootfs.version, options.selinux_rules, options.xattrs)
        _ = self.asked  # the bench knows it from here on
        for options in self._every_rule(argument):
            rules = rules_of(options, argument.digest.algorithm)
            with suppress(Error):  # a tree that these rules refuse has no digest by them
                if self._bench.digest(rules) == argument.digest:
                    return Variant(argument.digest, options.erofs_version, options.selinux_rules, options.xattrs)
        return None

    def _every_rule(self, argument: ComposefsArg) -> Iterator[TreeOptions]:
        """Yield what was asked for first."""
        asked = self.rules
        versions = (argument.version,) if argument.version else dict.fromkeys((asked.erofs_version, *VERSIONS))
        for xattrs in dict.fromkeys((asked.xattrs, *XATTRS)):
            for rules in dict.fromkeys((asked.selinux_rules, *SELINUX_RULES)):
                for version in versions:
                    yield replace(asked, erofs_version=version, selinux_rules=rules, xattrs=xattrs)


def candidates(ukis: Sequence[Uki], layers: UkiLayers) -> Sequence[Uki]:
    """Return all, or those of the layer that the user named."""
    for number, mark in layers.marked.items():
        if mark == "the user's word":
            found = [uki for uki in ukis if layers.origins.get(uki.path) == number]
            if not found:
                raise ImageError(f"layer {number} has no UKI", hint="`oci2boot inspect SOURCE` lists the layers")
            return found
    return ukis


def find_sealed(
    ukis: Sequence[Uki], digests: Digests, options: BootOptions, why: Callable[[Uki], str]
) -> Sealed | None:
    """Return the UKI to install and the rules of its digest; None where the image is not sealed, and may be so."""
    if options.flow == "auto" and not any(uki.sealed for uki in named_ukis(ukis, options.uki)):
        return None
    arguments = dict.fromkeys(argument for uki in ukis for argument in uki.about_composefs)
    return choose_sealed(
        ukis,
        {argument: variant for argument in arguments if (variant := digests.variant_of(argument))},
        lambda: digests.asked.digest,
        digests.algorithm,
        name=options.uki,
        allow_insecure=options.allow_missing_verity,
        why=why,
    )


def sealed_files(
    sealed: Sealed, read: Read, architecture: str, limit: int | None, report: Report, *, came_along: bool = False
) -> BootFiles:
    """Return the files of the EFI system partition: the UKI and its addons byte for byte."""
    uki, variant = sealed.uki, sealed.variant
    for note in sealed.notes:
        report(Warned(note))
    report(
        Told(
            f"{uki.name} promises this image: digest {variant.digest}, "
            f"EROFS format {variant.version}, "
            + ("as it came along" if came_along else f"SELinux rules {variant.selinux_rules}")
        )
    )
    _check_several(uki, read(uki.file))
    theirs = uki_files(uki, architecture, read)
    sizes = _sizes(uki, theirs, limit, report)
    _warn_of_addons(uki, report)
    return BootFiles(
        sizes=sizes,
        kernel=uki.kernel_version,
        cmdline=uki.cmdline,
        esp=theirs,
        flow="sealed",
        finished=frozenset(theirs),
    )


def vendor_files(
    uki: Uki, merged: Directory, read: Read, architecture: str, karg: ComposefsArg, options: BootOptions, report: Report
) -> BootFiles:
    """Return the files of the EFI system partition: the vendor's byte for byte, and the addon, not signed yet."""
    if options.signing is None:
        raise ImageError(
            "the vendor flow makes an addon, which must be signed", hint="--secureboot-key and --secureboot-certificate"
        )
    addon, notes = vendor_addon(merged, read, uki, karg)
    for note in notes:
        report(Warned(note))
    report(Told(f"{uki.name} is its vendor's; {PROMISE} brings {karg}"))
    theirs = uki_files(uki, architecture, read)
    _warn_of_addons(uki, report)
    path = f"{uki.esp_path}{EXTRA}/{PROMISE}"
    if path in theirs:
        raise ImageError(f"the image has an addon {PROMISE} of its own")
    return BootFiles(
        kernel=uki.kernel_version,
        cmdline=f"{uki.cmdline} {karg}".strip(),
        esp={**theirs, path: addon},
        sizes=_sizes(uki, {**theirs, path: addon}, options.size_limit, report),
        flow="vendor",
        finished=frozenset(theirs),
    )


def _sizes(uki: Uki, files: Mapping[str, bytes], limit: int | None, report: Report) -> Sizes:
    """Tell what the firmware loads; `LimitError` where it is more than allowed."""
    data = files[uki.esp_path]
    sizes = sizes_of_uki(data, sum(map(len, files.values())) - len(data))
    report(Told(str(sizes)))
    for note in check_budget(sizes, limit):
        report(Warned(note))
    return sizes


def _check_several(uki: Uki, data: bytes) -> None:
    """Refuse several digests that our glue in the UKI's initramfs would refuse: it takes those of a signed set."""
    lines = [[*line, *uki.added()] for line in uki.promises()]
    if all(len(line) < 2 for line in lines):
        return
    headers = pe.parse(data)
    initramfs = b"".join(pe.contents(data, section) for section in headers.sections_named(b".initrd")[:1])
    members = cpio.read(initramfs, lambda path: path == DIGEST_FILE or glue.keep(path)) if initramfs else {}
    if glue.brought_by(members) != "oci2boot" and PLACE + b"init" not in members:
        return
    told = (members[DIGEST_FILE].content or b"").decode(errors="replace").split() if DIGEST_FILE in members else []
    for line in lines:
        if unknown := [argument for argument in line if str(argument.digest) not in told]:
            raise ImageError(
                f"{uki.name} would not boot: it promises {len(line)} digests, and its initramfs has not {unknown[0]}",
                hint="`oci2boot seal --both-hashes` makes one whose initramfs has both",
            )


def _warn_of_addons(uki: Uki, report: Report) -> None:
    """Name what addons may do by their signature, and the digest does not prevent."""
    for addon in uki.addons:
        if decisive := addon.decisive():
            report(Warned(f"addon {addon.name}: {decisive}"))


def uki_files(uki: Uki, architecture: str, read: Read) -> dict[str, bytes]:
    """Return the UKI and what the stub finds beside it, by path on the ESP."""
    if uki.machine != machine_of(architecture):
        raise ImageError(f"the image is for {machine_of(architecture)}, its UKI {uki.name} for {uki.machine}")
    path = uki.esp_path
    # All of them beside the one UKI: those of loader/addons are not for other systems on the same ESP.
    return {path: read(uki.file), **{f"{path}{EXTRA}/{addon.name}": read(addon.file) for addon in uki.addons}}
