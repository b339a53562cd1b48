"""UKIs that an image brings, and which of them keeps its promise: the one whose composefs arguments name this image.

systemd-stub(7): the sections before the first `.profile` are every profile's, a profile's own `.cmdline` replaces
theirs, and addons append to it. Whatever of these may be booted is held to the same promise.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Final

from oci2boot.boot import discover
from oci2boot.boot.names import EXTRA, GLOBAL_ADDONS, LINUX, MAX_ADDON, MAX_ADDONS, MAX_UKI, is_addon
from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import Error, FlowError, HashError, ImageError, LimitError, OptionalVerityError, StaleError
from oci2boot.formats import cmdline, os_release, pe
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.formats.file_contexts.specs import Rules
from oci2boot.formats.version import compare
from oci2boot.rootfs.inodes import Version
from oci2boot.tree.files import Read, list_directory, read_content, show
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File
from oci2boot.tree.prepare import Xattrs

MAX_UKIS: Final = 64
MAX_NAMED: Final = 8
"""UKIs that an error names; it counts the others."""

IMAGE_ADDONS: Final = f"boot/{GLOBAL_ADDONS}".encode()
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9_.+-]")


@dataclass(frozen=True, slots=True, eq=False)
class Addon:
    path: bytes
    """In the image; what the stub goes by is the last component."""
    file: File
    cmdline: str

    @property
    def name(self) -> str:
        return self.path.rpartition(b"/")[2].decode()

    def promises(self) -> list[ComposefsArg]:
        return _arguments(self.cmdline, self.path)

    def decisive(self) -> str:
        """Say what it appends that decides what is booted of a verified root file system; nothing in most cases."""
        words = cmdline.find_decisive(cmdline.split(self.cmdline))
        if not words:
            return ""
        return f"it appends {' '.join(words)}: the files are the promised ones, but others of them may run"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Uki:
    """A UKI of the image, without its bytes."""

    path: bytes
    file: File
    machine: str
    cmdlines: tuple[str, ...]
    """Every command line that it may be booted with, the usual one first, without what addons append."""
    addons: tuple[Addon, ...]
    kernel_version: str
    version: str
    """What systemd-boot orders its menu by."""

    @property
    def name(self) -> str:
        return show(self.path.rpartition(b"/")[2])

    @property
    def esp_path(self) -> str:
        """Where it goes; systemd-boot passes over a name of other characters than these."""
        return f"{LINUX}/{_NOT_IN_NAME.sub('-', self.name)}"

    @property
    def cmdline(self) -> str:
        return " ".join(part for part in (self.cmdlines[0], *(addon.cmdline for addon in self.addons)) if part)

    def promises(self) -> list[list[ComposefsArg]]:
        """Return the composefs arguments of each command line."""
        return [_arguments(line, self.path) for line in self.cmdlines]

    def added(self) -> list[ComposefsArg]:
        """Return the composefs arguments of its addons."""
        return [argument for addon in self.addons for argument in addon.promises()]

    @property
    def about_composefs(self) -> list[ComposefsArg]:
        """Every composefs argument that it can be booted with, each once."""
        every = [argument for promised in (*self.promises(), self.added()) for argument in promised]
        return list(dict.fromkeys(every))

    @property
    def sealed(self) -> bool:
        return any(self.promises())


def find_sealable(tree: Directory, read: Read) -> list[Uki]:
    """Return the image's UKIs, of the merged tree; an EFI program there that cannot be read is an error."""
    paths = discover.find_ukis(tree)
    if len(paths) > MAX_UKIS:
        raise LimitError(f"the image has {len(paths)} UKIs, at most {MAX_UKIS} are looked at")
    shared = list(find_addons(tree, read, IMAGE_ADDONS))
    return [uki for path in paths if (uki := _read_uki(tree, read, path, shared))]


def _read_uki(tree: Directory, read: Read, path: bytes, shared: Sequence[Addon]) -> Uki | None:
    """Return None for a program that is no UKI: a kernel alone, a boot loader."""
    found = look_up(tree, path)
    assert found
    file = found[1]
    assert isinstance(file, File)
    data = read_content(file, read, path, MAX_UKI)
    with _named(path):
        head = read_head(data)
    if not head:
        return None
    own = list(find_addons(tree, read, path + EXTRA.encode()))
    version = _version(head.os_release, path)
    return Uki(
        path=path,
        file=file,
        machine=head.machine,
        cmdlines=head.cmdlines,
        addons=(*shared, *own),
        kernel_version=head.kernel_version,
        version=version,
    )


@dataclass(frozen=True, slots=True)
class UkiHead:
    """What a UKI says about itself."""

    machine: str
    cmdlines: tuple[str, ...]
    """As in `Uki`."""
    os_release: bytes
    kernel_version: str


def read_head(data: bytes) -> UkiHead | None:
    """Return None for a program that is no UKI."""
    headers = pe.parse(data)
    sections = list(headers.sections)
    starts = [index for index, section in enumerate(sections) if section.name == b".profile"]
    base = _Sections(data, sections[: starts[0]] if starts else sections)
    if not base.has(b".linux"):
        return None
    profiles = [
        _Sections(data, sections[start + 1 : end]) for start, end in itertools.pairwise([*starts, len(sections)])
    ]
    # What reads no profiles takes the base's own, so it is looked at even where every profile has another.
    lines = [base.cmdline, *(profile.cmdline if profile.has(b".cmdline") else base.cmdline for profile in profiles)]
    if profiles and not base.has(b".cmdline"):
        del lines[0]
    return UkiHead(
        headers.machine,
        tuple(dict.fromkeys(lines)),
        base.text(b".osrel", os_release.MAX_SIZE),
        base.text(b".uname", 256).decode(errors="replace").strip("\n\0"),
    )


def read_addon(data: bytes) -> str:
    """Return what an addon appends to the command line."""
    headers = pe.parse(data)
    if headers.sections_named(b".linux"):
        raise ImageError("it is an addon with a kernel in it")
    return _Sections(data, headers.sections).cmdline


@dataclass(frozen=True, slots=True)
class _Sections:
    data: bytes
    sections: Sequence[pe.SectionHeader]

    def has(self, name: bytes) -> bool:
        return any(section.name == name for section in self.sections)

    def text(self, name: bytes, limit: int) -> bytes:
        for section in self.sections:
            if section.name == name:
                content = pe.contents(self.data, section)
                if len(content) > limit:
                    raise LimitError(f"its section {name.decode()} has {len(content)} bytes, {limit} are allowed")
                return content
        return b""

    @property
    def cmdline(self) -> str:
        return cmdline.read_section(self.text(b".cmdline", 1 << 20))


def find_addons(tree: Directory, read: Read, directory: bytes) -> Iterator[Addon]:
    """Yield what systemd-stub would load of a directory, in its order."""
    for count, (name, _) in enumerate(list_directory(tree, directory)):
        path = directory + b"/" + name
        place = look_up(tree, path)
        if not is_addon(name) or name.startswith(b".") or not name.isascii():
            continue
        if not place or not isinstance(place[1], File):
            continue
        if count >= MAX_ADDONS:
            raise LimitError(f"/{show(directory)} has more than {MAX_ADDONS} addons")
        data = read_content(place[1], read, path, MAX_ADDON)
        with _named(path):
            yield Addon(path, place[1], read_addon(data))


class _named:  # noqa: N801  # a context manager that reads as a function
    """Say which file of the image an `Error` within is about."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Error):
            raise type(error)(f"/{show(self._path)}: {error.message}", hint=error.hint) from error


def _arguments(line: str, path: bytes) -> list[ComposefsArg]:
    with _named(path):
        return cmdline.find_composefs(cmdline.split(line))


def _version(release: bytes, path: bytes) -> str:
    with _named(path):
        _, version, _ = os_release.pick(os_release.parse(release))
    return version or ""


@dataclass(frozen=True, slots=True)
class Variant:
    """Rules and a format that a digest was computed by."""

    digest: VerityDigest
    version: Version
    selinux_rules: Rules
    xattrs: Xattrs


@dataclass(frozen=True, slots=True)
class Sealed:
    """The UKI to install."""

    uki: Uki
    variant: Variant
    """Of the digest to install for it."""
    notes: tuple[str, ...]


def choose_sealed(
    ukis: Sequence[Uki],
    variants: Mapping[ComposefsArg, Variant],
    image: Callable[[], VerityDigest],
    algorithm: Hash,
    *,
    name: str | None = None,
    allow_insecure: bool = False,
    why: Callable[[Uki], str] = lambda _: "",
) -> Sealed:
    """Return the UKI that promises this image; `variants` holds, of every argument, what of the image it names, if any.

    `image` computes what the image is by the rules asked for, and by the hash of the store that is to hold it, which
    is `algorithm`; `why` tells what changed since a UKI was made.
    """
    sealed = [uki for uki in named_ukis(ukis, name) if uki.sealed]
    if not sealed:
        raise FlowError(
            f"{_listed(ukis)} promises no root file system: signed, it would boot any"
            if ukis
            else "the image has no UKI in /boot/EFI/Linux",
            hint="`oci2boot seal` makes one for this image",
        )
    for uki in sealed:
        _check_strict(uki, allow_insecure=allow_insecure)
    good = [uki for uki in sealed if all(argument in variants for argument in uki.about_composefs)]
    if not good:
        changed = [said for uki in sealed[:MAX_NAMED] if (said := why(uki))]
        raise StaleError(
            "; ".join([f"stale UKI: {_promises(sealed)}", f"this image is {image()}", *dict.fromkeys(changed)]),
            hint="`oci2boot seal` makes a new one for this image",
        )
    best = max(good, key=cmp_to_key(newer))
    usable = [argument for argument in _common(best) if argument.digest.algorithm == algorithm]
    if not usable:
        other = best.about_composefs[0].digest.algorithm
        raise HashError(
            f"/{show(best.path)} promises this image by its {other} digest, but the store uses {algorithm}",
            hint=f"use another store, of {other}",
        )
    # composefs.digest= is what every reader looks for first.
    argument = min(usable, key=lambda argument: argument.version is None)
    notes = [f"{uki.name} is stale and left out" for uki in sealed if uki not in good]
    if len(good) > 1:
        others = ", ".join(uki.name for uki in good if uki is not best)
        notes.append(f"{best.name} is the newest UKI that promises this image; also {others} does, and can be named")
    return Sealed(best, variants[argument], tuple(notes))


def named_ukis(ukis: Sequence[Uki], name: str | None) -> list[Uki]:
    """Return those of a file name or a path; all without one."""
    named = [uki for uki in ukis if name in (None, uki.name, show(uki.path), f"/{show(uki.path)}")]
    if name is not None and not named:
        raise ImageError(f"the image has no UKI {name!r}", hint=f"it has {_listed(ukis)}" if ukis else None)
    return named


def _check_strict(uki: Uki, *, allow_insecure: bool) -> None:
    if not all(uki.promises()):
        raise ImageError(
            f"/{show(uki.path)} has a profile without a composefs argument: it would boot any root file system"
        )
    if not allow_insecure and any(argument.insecure for argument in uki.about_composefs):
        raise OptionalVerityError(
            f"/{show(uki.path)} does not insist on verification: its composefs argument has the mark `?`"
        )


def _common(uki: Uki) -> list[ComposefsArg]:
    """Return the arguments that are on every command line."""
    first, *others = uki.promises()
    return [argument for argument in first if all(argument in line for line in others)]


def newer(first: Uki, second: Uki) -> int:
    """Compare as systemd-boot orders its menu: below, above or of zero."""
    names = (first.name, second.name)
    return (
        compare(first.version, second.version)
        or compare(first.kernel_version, second.kernel_version)
        or compare(*names)
        or (names[0] > names[1]) - (names[0] < names[1])
    )


def _promises(ukis: Sequence[Uki]) -> str:
    shown = [
        f"/{show(uki.path)} promises {' and '.join(str(argument.digest) for argument in uki.about_composefs)}"
        for uki in ukis[:MAX_NAMED]
    ]
    return "; ".join(shown) + _more(ukis)


def _listed(ukis: Sequence[Uki]) -> str:
    return ", ".join(f"/{show(uki.path)}" for uki in ukis[:MAX_NAMED]) + _more(ukis)


def _more(ukis: Collection[Uki]) -> str:
    return f" and {len(ukis) - MAX_NAMED} more" if len(ukis) > MAX_NAMED else ""
