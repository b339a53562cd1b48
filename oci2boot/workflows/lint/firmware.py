"""What the firmware starts, and what looks after it: boot loader, stub, signatures, boot counting, growth."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

from oci2boot.boot.glue import check_growth
from oci2boot.boot.loader import find_loader, loader_conf
from oci2boot.boot.names import BLESSER, is_program
from oci2boot.boot.payload import EFI_NAMES, STUB_DIRECTORY, find_efi_program, machine_of
from oci2boot.boot.sealed import read_head
from oci2boot.boot.uki import STUB_WITH_ADDONS, stub_version
from oci2boot.errors import Error
from oci2boot.formats import authenticode
from oci2boot.formats.sbat import read_sbat
from oci2boot.formats.tar import printable
from oci2boot.store.images import LOOSE, WITHOUT_UKI
from oci2boot.tree.lookup import look_up
from oci2boot.workflows.lint.model import Found, Lint, Subject

Programs = Mapping[str, Callable[[], bytes]]


def _architecture(subject: Subject) -> Iterable[Found]:
    machine_of(subject.architecture)
    return ()


def _loader(subject: Subject) -> Iterable[Found]:
    if subject.machine:
        _loaders(subject)
    return ()


def _loaders(subject: Subject) -> Mapping[str, bytes]:
    tree, read, boot, shipped = subject.tree, subject.read, subject.boot, bool(subject.sealed)
    name = "none" if boot.flow in LOOSE else boot.loader
    return find_loader(tree, read, subject.architecture, name, loader_conf(), shipped=shipped).programs


def _stub(subject: Subject) -> Iterator[Found]:
    if subject.sealed or subject.boot.flow in WITHOUT_UKI or not subject.machine:
        return
    name = f"linux{EFI_NAMES[subject.machine]}.efi.stub"
    yield from _old(
        find_efi_program(subject.tree, subject.read, name, "systemd-stub"), f"/{STUB_DIRECTORY.decode()}{name}"
    )


def _old(program: bytes, name: str) -> Iterator[Found]:
    version = stub_version(program)
    if version < STUB_WITH_ADDONS:
        yield Found(
            f"{name} has the systemd-stub {version or 'of unknown version'}: addons, and so `kargs`, "
            f"take {STUB_WITH_ADDONS} or newer"
        )
    if not read_sbat(program):
        yield Found(f"{name} has no SBAT section: shim starts no UKI of it, and nobody can revoke one")


def _uki(subject: Subject) -> Iterator[Found]:
    """UKIs of the image: one that cannot be read is an error of a conversion, too."""
    for uki in subject.ukis:
        if any(argument.insecure for argument in uki.about_composefs):
            text = "a UKI does not insist on verification: its composefs argument has the mark `?`"
            yield Found(text, [uki.path], later=True)
        for addon in uki.addons:
            if decisive := addon.decisive():
                yield Found(f"addon {addon.name}: {decisive}")
        yield from _old(subject.read(uki.file), printable(b"/" + uki.path))


def _programs(subject: Subject) -> Programs:
    """Return what the firmware or the loader starts, by path on the ESP."""
    if subject.programs is not None:
        return subject.programs
    found: dict[str, Callable[[], bytes]] = {}
    for uki in subject.sealed:
        found[uki.esp_path] = partial(subject.read, uki.file)
    try:
        loaders = _loaders(subject) if found else {}
    except Error:  # the check of the loader says so
        loaders = {}
    return found | {path: partial(bytes, data) for path, data in loaders.items() if is_program(path)}


def _signature(subject: Subject) -> Iterator[Found]:
    signed: dict[bool, list[str]] = {True: [], False: []}
    loaders: dict[bool, list[str]] = {True: [], False: []}
    for path, read in _programs(subject).items():
        data = read()
        try:
            there = bool(authenticode.verify(data))
        except Error as error:
            yield Found(f"the signature of {path} does not hold: {error.message}")
            continue
        (signed if read_head(data) else loaders)[there].append(path)
    if signed[False] and subject.programs is None:
        yield Found(f"{', '.join(signed[False])} promises an image and is not signed: anyone can promise another one")
    if signed[True] and loaders[False]:
        yield Found(
            f"under Secure Boot {signed[True][0]} would be started by {loaders[False][0]}, which is not signed: "
            "firmware refuses it"
        )


def _counting(subject: Subject) -> Iterator[Found]:
    if not look_up(subject.tree, BLESSER):
        yield Found("the image has no systemd-bless-boot: boots are not counted, and one that fails does not fall back")


def _growth(subject: Subject) -> Iterator[Found]:
    yield from map(Found, check_growth(subject.tree))


LINTS: Final = (
    Lint(
        name="architecture",
        severity="error",
        what="The image is for machines that an EFI boot loader is known for.",
        hint="amd64, arm64, riscv64, 386 or loong64",
        check=_architecture,
    ),
    Lint(
        name="systemd-boot",
        severity="error",
        what="The boot loader is there: systemd-boot, or what --loader names.",
        hint="install it in the image (Debian: systemd-boot-efi)",
        check=_loader,
    ),
    Lint(
        name="systemd-stub",
        severity="warning",
        what="systemd-stub is there, new enough for addons, and can be revoked.",
        hint="install a newer systemd-boot in the image",
        check=_stub,
    ),
    Lint(
        name="uki",
        severity="warning",
        what="UKIs of the image can be read, insist on verification, and have a stub that knows addons.",
        hint="`oci2boot seal` makes a new one",
        check=_uki,
    ),
    Lint(
        name="signature",
        severity="warning",
        what="What the firmware starts is signed: a UKI that promises an image, and the loader that starts it.",
        hint="sign both: `seal` and `convert` take --secureboot-key and --secureboot-certificate",
        check=_signature,
        stage="root",
    ),
    Lint(
        name="boot-counting",
        severity="warning",
        what="systemd-bless-boot is there, which says of a boot that it was good.",
        hint="install it in the image (Debian: systemd-boot)",
        check=_counting,
        stage="root",
    ),
    Lint(
        name="growth",
        severity="warning",
        what="The tools are there by which the root file system grows to its disk.",
        hint="install them in the image (Debian: fdisk, util-linux, e2fsprogs)",
        check=_growth,
        stage="root",
    ),
)
