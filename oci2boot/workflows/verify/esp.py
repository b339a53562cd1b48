"""The files that the firmware starts from, wherever they lie."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from oci2boot.boot.dmverity import signature_path
from oci2boot.boot.names import EXTRA, GLOBAL_ADDONS, MAX_ADDON, MAX_UKI, addons_folder, is_addon, is_program, uncounted
from oci2boot.boot.sealed import Uki, find_sealable
from oci2boot.errors import Error, LimitError, TargetError
from oci2boot.formats import bls
from oci2boot.formats.fat import Fat
from oci2boot.system.files import read_limited
from oci2boot.tree.model import Directory, File, Inode, Metadata

FILES_MAX: Final = 1 << 16

EspFiles = Mapping[str, Callable[[], bytes]]
"""By path from the root of the ESP, with slashes: what reads the file."""

_ENTRY: Final = re.compile(r"loader/entries/[^/.][^/]*\.conf", re.IGNORECASE)


def esp_of_fat(fat: Fat) -> EspFiles:
    def reader(path: str) -> Callable[[], bytes]:
        return lambda: fat.content(path, _limit(path))

    return {path: reader(path) for path in sorted(fat.files)}


def esp_of_directory(top: Path) -> EspFiles:
    """Take a directory as the root of an ESP; symbolic links, which FAT does not know, are left out."""

    found: dict[str, Callable[[], bytes]] = {}
    if not top.is_dir():
        raise TargetError(f"{top} is not a directory")
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                relative = str(path.relative_to(top))
                found[relative] = partial(read_limited, path, _limit(relative), TargetError)
        if len(found) > FILES_MAX:
            raise LimitError(f"{top} has more than {FILES_MAX} files")
    return found


def _limit(path: str) -> int:
    if is_entry(path):
        return bls.MAX_SIZE
    return MAX_ADDON if is_addon(path) else MAX_UKI


def is_entry(path: str) -> bool:
    """Say whether a file is a type 1 entry. The Boot Loader Specification, by its place and name."""
    return bool(_ENTRY.fullmatch(path))


def find_ukis(files: EspFiles) -> Iterator[tuple[str, Uki | Error]]:
    """Yield each UKI by its path, with the addons that the stub would find; an `Error` for one that cannot be read."""
    for path in files:
        if is_program(path) and not is_addon(path):
            try:
                for uki in find_sealable(_as_image(files, path), _read):
                    yield path, uki
            except Error as error:
                yield path, error


def _as_image(files: EspFiles, path: str) -> Directory:
    """Return the tree of an image with this UKI alone, and its addons, where an image has them."""
    name = path.rpartition("/")[2]
    own = addons_folder(path).lower()
    beside: dict[str, dict[bytes, Inode]] = {own: {}, GLOBAL_ADDONS: {}}
    for other in files:
        folder, _, file = other.rpartition("/")
        if folder.lower() in beside and is_addon(other):
            beside[folder.lower()][file.encode()] = _file(files[other])
    linux: dict[bytes, Inode] = {name.encode(): _file(files[path]), f"{name}{EXTRA}".encode(): _directory(beside[own])}
    boot = {
        b"EFI": _directory({b"Linux": _directory(linux)}),
        b"loader": _directory({b"addons": _directory(beside[GLOBAL_ADDONS])}),
    }
    return _directory({b"boot": _directory(boot)})


def _file(read: Callable[[], bytes]) -> File:
    return File(Metadata(mode=0o644), read())


def _directory(entries: Mapping[bytes, Inode]) -> Directory:
    return Directory(Metadata(mode=0o755), entries)


def _read(file: File) -> bytes:
    assert isinstance(file.content, bytes)
    return file.content


def find_root_signature(paths: Iterable[str], uki: str) -> str | None:
    """Return which of the files is the signature of a UKI's root hash."""
    expected = signature_path(uncounted(uki)).lower()
    return next((path for path in paths if path.lower() == expected), None)
