"""What a machine demands of its next image: to be sealed and signed no less than this one, by the same, and not older.

A registry that is not the publisher's any more can serve other images, or older ones, under the name that a machine
follows: none of them gets into its boot directory.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final, NamedTuple, cast

from oci2boot.boot.names import MAX_UKI, is_addon, is_program
from oci2boot.boot.outcome import Kind, Outcome, Signer, same_key
from oci2boot.boot.payload import MAX_EFI_PROGRAM
from oci2boot.boot.sealed import read_head
from oci2boot.digest import External, VerityDigest
from oci2boot.errors import DowngradeError, Error, OtherSignerError, UnsealedError
from oci2boot.formats import authenticode, bls, os_release, sbat, version
from oci2boot.formats.bls import Type1
from oci2boot.formats.erofs.structs import IMAGE_MAX
from oci2boot.formats.x509 import Certificate
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootEntry, mapped
from oci2boot.sysroot.bootdir_plan import is_entry
from oci2boot.system.files import read_limited
from oci2boot.tree.model import File, walk
from oci2boot.workflows.machine.model import Deployment, MachineState
from oci2boot.workflows.make.again import OUTCOME
from oci2boot.workflows.make.signers import kind_of
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Warned

LOADER_FOLDERS: Final = ("EFI/BOOT", "EFI/systemd")
_MADE_HERE: Final = ("type1", "local")
"""Kinds whose version is of our making: when the image was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What somebody allows the next image to be."""

    PANEL: ClassVar = "What the next image may be"

    unsealed: Annotated[
        bool,
        Option(
            "--allow-unsealed",
            "accept an image that is sealed or signed less than the one before; `status` says so from then on",
        ),
    ] = False
    other_signer: Annotated[
        bool, Option("--allow-other-signer", "accept an image that another key signed than the one before")
    ] = False
    downgrade: Annotated[
        bool, Option("--allow-downgrade", "accept an image of a lower IMAGE_VERSION than what this machine runs")
    ] = False


NOTHING_LESS: Final = Allowed()


class Label(NamedTuple):
    """What an image says of itself in its UKI, which a signature covers."""

    id: str | None
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    outcome: Outcome | None
    """What the machine has; None where nothing is installed."""
    labels: tuple[Label, ...] = ()
    """Of what runs, and of what boots next."""
    addons: Mapping[str, bytes]
    """Of what boots next, by their names."""
    loaders: Mapping[str, tuple[Signer, ...]] = field(default_factory=dict)
    """Who signed what is in the boot directory to start it, by path in lower case."""
    same_image: bool = True
    """The next image is to be the next version of this one."""
    allowed: Allowed
    trusted: tuple[Certificate, ...] = ()

    def met_by(self, repository: Repository, bootable: Bootable, report: Report) -> Bootable:
        """Return the image with what it was allowed to be; `Error` with what was promised and what is found."""
        if self.outcome is None or not bootable.esp:
            return bootable
        files = {path: repository.object_path(digest) for path, digest in bootable.esp.items()}
        found = remembered_outcome(bootable.options) or Outcome.of(
            kind_of(bootable.flow), {path: read_limited(file, MAX_UKI) for path, file in files.items()}
        )
        had, found = self.outcome, self._check_outcome(self.outcome, found, report)
        # What we call a version, of an image that brings no UKI, is no version of its publisher's.
        if (found.kind in _MADE_HERE) == (self.outcome.kind in _MADE_HERE):
            for path in filter(is_entry, files):
                self._check_version(label_of(files[path], path), report)
        self._check_addons(files, report)
        if had.signers:
            self._check_who_adds(files, found, report)
            self._check_who_starts(repository, bootable, found, report)
        return replace(bootable, options={**bootable.options, OUTCOME: found.to_json()})

    def _check_outcome(self, had: Outcome, found: Outcome, report: Report) -> Outcome:
        if found.weaker_than(had):
            said = f"this machine's image is {had}; the new one is {found}"
            if not self.allowed.unsealed:
                raise UnsealedError(said, hint="a registry may serve something other than its publisher's image")
            report(Warned(said))
            return replace(found, before=had)
        if not found.same_signers(had):
            said = f"this machine's image is {had}; the new one is {found}, by another key"
            if not self.allowed.other_signer:
                raise OtherSignerError(said, hint="ask its publisher whether the key was changed")
            report(Warned(said))
        before = had.before if had.before and found.weaker_than(had.before) else None
        return replace(found, before=before)

    def _check_version(self, new: Label, report: Report) -> None:
        for old in self.labels:
            if old.version is None or (old.id != new.id and not self.same_image):
                continue
            if old.id != new.id:
                said = f"this machine has {old.id} {old.version}, and the new image is {new.id} {new.version}"
                said += ": it is another system"
            elif new.version is None:
                said = f"this machine has {old.id} {old.version}, and the new image does not say which version it is"
            elif version.compare(new.version, old.version) < 0:
                said = f"the new image is {new.id} {new.version}, older than {old.version}, which this machine has"
            else:
                continue
            self._refuse_older(said, report)

    def _check_addons(self, files: Mapping[str, Path], report: Report) -> None:
        for path, file in files.items():
            name = path.rpartition("/")[2].lower()
            if not is_addon(path) or name not in self.addons:
                continue
            olds = {entry.component: entry for entry in sbat.read_entries(self.addons[name])}
            for new in sbat.read_entries(read_limited(file, MAX_UKI)):
                old = olds.get(new.component, new)
                if new.generation < old.generation or version.compare(new.version, old.version) < 0:
                    said = f"the addon {name} of the new image is {new}, older than {old}, which this machine has"
                    self._refuse_older(said, report)

    def _check_who_adds(self, files: Mapping[str, Path], found: Outcome, report: Report) -> None:
        """Refuse an addon by somebody else than the UKI's: the digest does not cover it, and who serves an image may
        put one beside a UKI that is its publisher's.
        """
        for path, file in filter(lambda one: is_addon(one[0]), files.items()):
            name = path.rpartition("/")[2].lower()
            mine = self._signers(read_limited(file, MAX_UKI))
            theirs = self._signers(self.addons[name]) if name in self.addons else None
            if same_key(mine, (*found.signers, *found.addon, *(theirs or ()))) or (not mine and theirs == ()):
                continue
            self._refuse_stranger(f"the addon {name}", mine, found, report)

    def _check_who_starts(self, repository: Repository, bootable: Bootable, found: Outcome, report: Report) -> None:
        """Refuse a boot loader that is neither a file of the promised tree, nor by who signed the UKI or the loader
        before: it runs before any promise is looked at, /boot is in no digest, and a version can be claimed.
        """
        promised: Set[VerityDigest] | None = None
        for path, digest in sorted(bootable.esp.items()):
            if not is_program(path) or is_addon(path):
                continue
            program = read_limited(repository.object_path(digest), MAX_UKI)
            mine, theirs = self._signers(program), self.loaders.get(path.lower(), ())
            if read_head(program) or same_key(mine, (*found.signers, *found.addon, *theirs)):
                continue
            if promised is None:
                promised = _contents(repository, bootable)
            if digest not in promised:
                self._refuse_stranger(f"the boot loader {path}", mine, found, report)

    def _refuse_stranger(self, what: str, signers: Sequence[Signer], found: Outcome, report: Report) -> None:
        by = " and ".join(one.subject for one in signers) or "nobody"
        said = f"{what} of the new image is signed by {by}; the image is {found}"
        if signers and not self.allowed.other_signer:
            raise OtherSignerError(said, hint="ask its publisher whether it is theirs")
        if not signers and not self.allowed.unsealed:
            raise UnsealedError(said, hint="a registry may serve something other than its publisher's image")
        report(Warned(said))

    def _signers(self, program: bytes) -> tuple[Signer, ...]:
        return tuple(map(Signer.of, authenticode.verify(program, self.trusted)))

    def _refuse_older(self, said: str, report: Report) -> None:
        if not self.allowed.downgrade:
            raise DowngradeError(said, hint="a registry may serve an older image under the same name")
        report(Warned(said))


def demands_of(
    state: MachineState, trusted: list[Certificate], allowed: Allowed, *, same_image: bool = True
) -> Demands:
    """Return what the machine demands, by what it remembers, or else by what is in its boot directory."""
    installed = (one for one in state.deployments if one.entries)
    followed = state.remembers or state.next or state.current or next(installed, None)
    if followed is None:
        return Demands(outcome=None, addons={}, allowed=allowed)
    outcome = outcome_of_deployment(state, followed, trusted, allowed)
    entries = [one.entries[0] for one in (state.current, followed) if one and one.entries]
    labels = dict.fromkeys(label_of(state.directory.path / entry.path, entry.path) for entry in entries)
    addons: dict[str, bytes] = {}
    for entry in followed.entries[:1]:
        for path in entry.files:
            if is_addon(path):
                with mapped(state.directory.path / path, MAX_UKI) as data:
                    addons[path.rpartition("/")[2].lower()] = bytes(data)
    return Demands(
        outcome=outcome,
        labels=tuple(labels),
        addons=addons,
        loaders=_loaders(state.directory.path, trusted),
        same_image=same_image,
        allowed=allowed,
        trusted=tuple(trusted),
    )


def outcome_of_deployment(
    state: MachineState, one: Deployment, trusted: list[Certificate], allowed: Allowed
) -> Outcome:
    """Return what a deployment is: as its record says, or as an older version of the record lets us see on the ESP."""
    record = one.record or {}
    options = record.get("options")
    if isinstance(options, Mapping) and (known := remembered_outcome(options)):
        return known
    flow = record.get("flow", "local") if record else None
    if not one.entries:
        if allowed.unsealed:
            return Outcome("type1")
        raise UnsealedError(f"who signed what this machine has cannot be told: no boot entry starts {one.id}")
    entry = one.entries[0]
    kind = cast("Kind", flow) if flow in ("local", "vendor", "sealed") else _kind(state, entry)
    if entry.kind == "type1":
        return Outcome("type1")
    return Outcome.of(kind, dict(_files(state, entry)), trusted)


def _contents(repository: Repository, bootable: Bootable) -> Set[VerityDigest]:
    """Return the contents of the files that an image's root file system has, by digest."""
    tree = read_rootfs(repository.read_object(bootable.root.tree, IMAGE_MAX))
    return {
        inode.content.digest
        for _, inode in walk(tree)
        if isinstance(inode, File) and isinstance(inode.content, External)
    }


def _loaders(esp: Path, trusted: Sequence[Certificate]) -> Mapping[str, tuple[Signer, ...]]:
    """Return what the firmware starts of a boot directory, and what that starts; UKIs are none of it."""
    found = {}
    for folder in LOADER_FOLDERS:
        place = esp / folder
        for file in sorted(place.iterdir()) if place.is_dir() and not place.is_symlink() else ():
            if is_program(file.name) and not is_addon(file.name):
                with suppress(Error, OSError), mapped(file, MAX_EFI_PROGRAM) as data:
                    signers = map(Signer.of, authenticode.verify(bytes(data), trusted))
                    found[f"{folder}/{file.name}".lower()] = tuple(signers)
    return found


def remembered_outcome(options: Mapping[str, object]) -> Outcome | None:
    return Outcome.from_json(options[OUTCOME]) if OUTCOME in options else None


def _kind(state: MachineState, entry: BootEntry) -> Kind:
    """Return what a UKI is that another tool installed: whether its own command line has the promise, or an addon."""
    return "sealed" if state.directory.promises.get(entry.path) or entry.root_hashes else "vendor"


def _files(state: MachineState, entry: BootEntry) -> Iterator[tuple[str, bytes]]:
    for path in entry.files:
        with mapped(state.directory.path / path, MAX_UKI) as data:
            yield path, bytes(data)


def label_of(file: Path, path: str) -> Label:
    """Return what an entry of the boot menu, at `path` of the ESP, says of its image."""
    if path.lower().endswith(".conf"):
        with mapped(file, bls.MAX_SIZE) as data:
            conf = Type1.parse(bytes(data))
        return Label(conf.last("sort-key"), conf.last("version"))
    with mapped(file, MAX_UKI) as data:
        head = read_head(data)
    fields = os_release.parse(head.os_release) if head else {}
    return Label(fields.get("IMAGE_ID") or fields.get("ID"), fields.get("IMAGE_VERSION") or None)
