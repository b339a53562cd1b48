"""The files that the firmware starts from, wherever they lie."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from oci2boot.boot.sealed import MAX_ADDON, MAX_UKI, Uki, find_sealable
from oci2boot.boot.verity import signature_path
from oci2boot.errors import Error, LimitError, TargetError
from oci2boot.formats import bls
from oci2boot.formats.fat import Fat
from oci2boot.system.files import plain_errors
from oci2boot.tree.model import Directory, File, Inode, Metadata

FILES_MAX: Final = 1 << 16

EspFiles = Mapping[str, Callable[[], bytes]]
"""By path from the root of the ESP, with slashes: what reads the file."""

_PROGRAM: Final = ".efi"
_ADDON: Final = ".addon.efi"
_ENTRY: Final = re.compile(r"loader/entries/[^/.][^/]*\.conf", re.IGNORECASE)
_COUNTER: Final = re.compile(r"\+\d+(-\d+)?(?=\.efi$)", re.IGNORECASE)
"""Boot counting renames a UKI; its addons keep their place, and it stays the same file. systemd-stub(7)."""


def esp_of_fat(fat: Fat) -> EspFiles:
    def reader(path: str) -> Callable[[], bytes]:
        return lambda: fat.content(path, _limit(path))

    return {path: reader(path) for path in sorted(fat.files)}


def esp_of_directory(top: Path) -> EspFiles:
    """Take a directory as the root of an ESP; symbolic links, which FAT does not know, are left out."""

    def reader(path: Path, limit: int) -> Callable[[], bytes]:
        def read() -> bytes:
            with plain_errors(TargetError, f"read {path}"), path.open("rb") as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise LimitError(f"{path} has more than {limit} bytes")
            return data

        return read

    found: dict[str, Callable[[], bytes]] = {}
    if not top.is_dir():
        raise TargetError(f"{top} is not a directory")
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                relative = str(path.relative_to(top))
                found[relative] = reader(path, _limit(relative))
        if len(found) > FILES_MAX:
            raise LimitError(f"{top} has more than {FILES_MAX} files")
    return found


def _limit(path: str) -> int:
    if is_entry(path):
        return bls.MAX_SIZE
    return MAX_ADDON if path.lower().endswith(_ADDON) else MAX_UKI


def is_entry(path: str) -> bool:
    """Say whether a file is a type 1 entry. The Boot Loader Specification, by its place and name."""
    return bool(_ENTRY.fullmatch(path))


def is_program(path: str) -> bool:
    return path.lower().endswith(_PROGRAM)


def find_ukis(files: EspFiles) -> Iterator[tuple[str, Uki | Error]]:
    """Yield each UKI by its path, with the addons that the stub would find; an `Error` for one that cannot be read."""
    for path in files:
        if is_program(path) and not path.lower().endswith(_ADDON):
            try:
                for uki in find_sealable(_as_image(files, path), _read):
                    yield path, uki
            except Error as error:
                yield path, error


def _as_image(files: EspFiles, path: str) -> Directory:
    """Return the tree of an image with this UKI alone, and its addons, where an image has them."""
    name = path.rpartition("/")[2]
    own = addons_folder(path).lower()
    beside: dict[str, dict[bytes, Inode]] = {own: {}, "loader/addons": {}}
    for other in files:
        folder, _, file = other.rpartition("/")
        if folder.lower() in beside and other.lower().endswith(_ADDON):
            beside[folder.lower()][file.encode()] = _file(files[other])
    linux: dict[bytes, Inode] = {name.encode(): _file(files[path]), f"{name}.extra.d".encode(): _directory(beside[own])}
    boot = {
        b"EFI": _directory({b"Linux": _directory(linux)}),
        b"loader": _directory({b"addons": _directory(beside["loader/addons"])}),
    }
    return _directory({b"boot": _directory(boot)})


def _file(read: Callable[[], bytes]) -> File:
    return File(Metadata(0o644), read())


def _directory(entries: Mapping[bytes, Inode]) -> Directory:
    return Directory(Metadata(0o755), entries)


def _read(file: File) -> bytes:
    assert isinstance(file.content, bytes)
    return file.content


def addons_folder(uki: str) -> str:
    """Return where systemd-stub looks for the addons of a UKI."""
    return uncounted(uki) + ".extra.d"


def uncounted(path: str) -> str:
    """Return the path that a UKI has when its boots are no longer counted."""
    return _COUNTER.sub("", path)


def find_root_signature(paths: Iterable[str], uki: str) -> str | None:
    """Return which of the files is the signature of a UKI's root hash."""
    expected = signature_path(uncounted(uki)).lower()
    return next((path for path in paths if path.lower() == expected), None)
