"""What UKIs keep alive: every object of the rootfs images that they promise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from oci2boot.boot.names import EXTRA, is_program
from oci2boot.boot.sealed import Uki
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, FormatError, StoreError
from oci2boot.rootfs.reader import referenced_objects
from oci2boot.store.repository import Repository
from oci2boot.workflows.keys.executables import read_executable
from oci2boot.workflows.verify.esp import EspFiles, esp_of_directory, find_ukis


@dataclass(frozen=True, slots=True)
class UkiObjects:
    uki: str
    rootfs: tuple[VerityDigest, ...]
    """The rootfs images that it may boot, of those that the store can have."""
    objects: frozenset[VerityDigest]
    """Of the rootfs images, these included."""

    def to_json(self) -> dict[str, object]:
        return {
            "uki": self.uki,
            "rootfs": [str(digest) for digest in self.rootfs],
            "objects": sorted(map(str, self.objects)),
        }


def list_objects(paths: Sequence[Path], repo: Path) -> list[UkiObjects]:
    """Scan UKIs, or directories of whole ESPs. Stores are pruned by this, so what cannot be read is an error."""
    with Repository.open(repo) as repository:
        return [_objects(repository, name, uki) for path in paths for name, uki in _ukis(path)]


def _ukis(path: Path) -> Iterator[tuple[str, Uki]]:
    found = False
    for name, uki in find_ukis(esp_of_directory(path) if path.is_dir() else _one(path)):
        shown = f"{path}/{name}" if path.is_dir() else str(path)
        if isinstance(uki, Error):
            raise type(uki)(f"{shown}: {uki.message}", hint=uki.hint)
        found = True
        yield shown, uki
    if not found:
        raise FormatError(f"{path} {'has no UKI in it' if path.is_dir() else 'is not a UKI'}")


def _one(path: Path) -> EspFiles:
    """Return a file, whatever it is called, and what may be addons to it."""
    name = path.name if is_program(path.name) else f"{path.name}.efi"
    beside = [folder for folder in path.parent.glob(f"*{EXTRA}") if folder.is_dir()]
    addons = {f"{folder.name}/{inner}": read for folder in beside for inner, read in esp_of_directory(folder).items()}
    return {name: lambda: read_executable(path), **addons}


def _objects(repository: Repository, name: str, uki: Uki) -> UkiObjects:
    promised = tuple(dict.fromkeys(argument.digest for argument in uki.about_composefs))
    here = [digest for digest in promised if repository.has_object(digest)]
    if not here:
        what = " and ".join(map(str, promised)) or "no rootfs image"
        raise StoreError(
            f"{name} promises {what}, which {repository.path} does not have", hint="name its store by --repo"
        )
    objects = {digest for rootfs in here for digest in referenced_objects(repository.read_object(rootfs))}
    return UkiObjects(name, tuple(here), frozenset({*here, *objects}))
