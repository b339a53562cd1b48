"""What a check of an image is, what it looks at, and what it finds. Nothing of the image is run."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from oci2boot.boot import glue
from oci2boot.boot.configuration import RootConfiguration, configuration_files
from oci2boot.boot.discover import Kernel, choose_kernel, find_kernels
from oci2boot.boot.payload import MAX_INITRAMFS, OCI_MACHINES
from oci2boot.boot.sealed import Uki, find_sealable
from oci2boot.errors import Error
from oci2boot.formats import cpio
from oci2boot.formats.file_contexts.policy import Policy
from oci2boot.formats.tar import printable
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.tree.diff import text as shown_path
from oci2boot.tree.files import Read, read_content
from oci2boot.tree.model import Directory
from oci2boot.tree.selinux import load_policy
from oci2boot.workflows.requests import BootOptions

Severity = Literal["error", "warning", "note"]
"""`error`: it would not boot, or not as promised; `note`: worth knowing, and never a failure. The words are SARIF's."""
Stage = Literal["source", "root"]
"""`root` looks at what is in a rootfs image too; `source` at more: kernel and initramfs, what lies in /boot."""

UNITS: Final = ("composefs-setup-root.service", "bootc-root-setup.service", "oci2boot-setup-root.service")
"""Of an initramfs: what sets up the root file system."""
UNIT: Final = re.compile(
    rb"((usr/)?lib|etc)/systemd/system/("
    + b"|".join(re.escape(unit.encode()) for unit in UNITS)
    + rb")(\.d/[^/]+\.conf)?"
)
"""One of them, or a drop-in of it."""
NAMED: Final = 5
"""Paths that a sentence names; it counts the others."""
MAX_PATHS: Final = 1000
"""Paths that are kept of one finding."""


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a check has to say."""

    text: str
    paths: Sequence[bytes] = ()
    """Of the image, with or without leading slash; what the sentence is about."""
    hint: str | None = None
    """Instead of the check's own."""
    severity: Severity | None = None
    """Instead of the check's own."""
    later: bool = False
    """A conversion says it, or refuses it, when it comes to it."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An image to be looked at, and how it is going to be booted."""

    tree: Directory
    """Its layers merged, /boot not emptied; or a rootfs image, which has neither."""
    read: Read
    architecture: str
    """As OCI says it: `amd64`."""
    stage: Stage = "source"
    boot: BootOptions = field(default_factory=BootOptions)
    verity: VerityOptions | None = None
    """The mode `verity`; None is the mode `composefs`."""
    programs: Mapping[str, Callable[[], bytes]] | None = None
    """The EFI programs of a converted image, by path on the ESP; None where the image's own count."""
    kernel_version: str | None = None
    """Of a converted image."""

    @cached_property
    def kernels(self) -> list[Kernel]:
        return find_kernels(self.tree)

    @cached_property
    def ukis(self) -> list[Uki]:
        return find_sealable(self.tree, self.read)

    @property
    def known_ukis(self) -> list[Uki]:
        """None where the check `uki` says what is wrong with them."""
        try:
            return self.ukis
        except Error:
            return []

    @cached_property
    def kernel(self) -> Kernel | None:
        """The kernel that a UKI is built of; None where the image's own UKI boots. Raises what a conversion does."""
        if self.sealed or (self.known_ukis and not self.kernels):
            return None
        return choose_kernel(self.kernels, self.boot.kernel, initramfs=False)

    @property
    def kernel_if_known(self) -> Kernel | None:
        """None where the check `kernel` says why there is none, too."""
        try:
            return self.kernel
        except Error:
            return None

    @cached_property
    def initramfs(self) -> Mapping[bytes, cpio.Found]:
        """What lies in the initramfs of that kernel, with the contents that `wanted` names; nothing without one."""
        kernel = self.kernel_if_known
        if kernel is None or kernel.initramfs is None or self.boot.initrd != "image":
            return {}
        data = read_content(kernel.initramfs, self.read, kernel.initramfs_path, MAX_INITRAMFS)
        return cpio.read(data, wanted)

    @cached_property
    def policy(self) -> tuple[Policy | None, Sequence[str]]:
        """The SELinux policy, and what there is to say of it. Raises what a conversion does."""
        notes: list[str] = []
        return load_policy(self.tree, self.read, warn=notes.append), notes

    @cached_property
    def configuration(self) -> RootConfiguration:
        """How /etc, /var and the root are mounted. Raises `ImageError` for a setting that stops the boot."""
        configuration = RootConfiguration()
        for path, content in configuration_files(self.tree, self.read):
            configuration = configuration.with_file(path, content)
        return configuration

    @cached_property
    def machine(self) -> str | None:
        """The kernel's word for the architecture; None where the check `architecture` says that there is none."""
        return OCI_MACHINES.get(self.architecture)

    @property
    def sealed(self) -> list[Uki]:
        """Return the image's UKIs that promise a root file system; where there are some, they boot."""
        return [uki for uki in self.known_ukis if uki.sealed] if self.boot.flow in ("auto", "sealed") else []


def wanted(path: bytes) -> bool:
    """Say which files of an initramfs are read: what glue continues, and the units that set up the root file system."""
    return glue.keep(path) or bool(UNIT.fullmatch(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lint:
    """A check by its name; `check` yields what it finds, and an `Error` that it raises is a finding too."""

    name: str
    severity: Severity
    what: str
    """What it looks at, in one sentence."""
    hint: str
    check: Callable[[Subject], Iterable[Found]]
    stage: Stage = "source"
    bootc: bool = False
    """`bootc container lint` has one of this name."""
    repeated: bool = False
    """A conversion does the same, and says the same: before one it is done where it may stop it."""

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "severity": self.severity,
            "what": self.what,
            "hint": self.hint,
            "bootc": self.bootc,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, ready to be shown."""

    lint: Lint
    text: str
    hint: str
    severity: Severity
    paths: tuple[str, ...] = ()
    later: bool = False

    @property
    def sentence(self) -> str:
        if not self.paths:
            return self.text
        more = f" and {len(self.paths) - NAMED} more" if len(self.paths) > NAMED else ""
        return f"{self.text}: {', '.join(printable(path.encode()) for path in self.paths[:NAMED])}{more}"

    def to_json(self) -> dict[str, object]:
        return {
            "lint": self.lint.name,
            "severity": self.severity,
            "text": self.text,
            "hint": self.hint,
            "paths": list(self.paths),
        }


def finding_of(lint: Lint, found: Found) -> Finding:
    paths = tuple("/" + shown_path(path).lstrip("/") for path in found.paths[:MAX_PATHS])
    return Finding(lint, found.text, found.hint or lint.hint, found.severity or lint.severity, paths, found.later)
