"""Every file of an EROFS image, by erofs-utils: nothing else here knows the compressions."""

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from oci2boot.errors import ToolError
from oci2boot.system.files import plain_errors
from oci2boot.system.run import run, said_by
from oci2boot.tree.diff import TYPES, Difference, Fields, compare, text
from oci2boot.workflows.verify.checks import NotCheckedError
from oci2boot.workflows.verify.manifest import PLAIN_HASH, Manifest

FSCK: Final = "fsck.erofs"
_OLDEST: Final = (1, 8)
"""The first that knows all compressions."""
_COMPARED: Final = ("type", "size", PLAIN_HASH, "target")
_DEVICES: Final = (TYPES[stat.S_IFCHR], TYPES[stat.S_IFBLK])
"""Only root can make them."""
_Path = tuple[str, Mapping[str, object]]


def fsck_is_missing() -> str | None:
    """Return why there is no program that could read any image; None where there is."""
    said = said_by([FSCK, "-V"])
    version = re.search(r"\b(\d{1,3})\.(\d{1,3})", said)
    if version and tuple(map(int, version.groups())) >= _OLDEST:
        return None
    found = f"{FSCK} {version[0]} is older" if version else f"there is no {FSCK}"
    return f"{found}: erofs-utils {'.'.join(map(str, _OLDEST))} could read it"


def run_fsck(image: Iterable[bytes], folder: Path | None = None) -> None:
    """Read every file, or write them into a folder that is not there yet; `ToolError` for one that cannot be read.

    Raises `NotCheckedError` where the program is missing.

    An ordinary user gets no device nodes, and not the owners and modes of the image.
    """
    if missing := fsck_is_missing():
        raise NotCheckedError(missing)
    with plain_errors(ToolError, f"copy the file system for {FSCK}"), tempfile.NamedTemporaryFile() as file:
        file.writelines(image)
        file.flush()
        preserve = [] if folder is None else ["--no-preserve"]
        run([FSCK, "--extract" if folder is None else f"--extract={folder}", *preserve, file.name])


def differences(image: Iterable[bytes], manifest: Manifest) -> Iterable[Difference]:
    """Compare every file with those of a manifest: type, size and content."""
    with plain_errors(ToolError, f"read what {FSCK} wrote"), tempfile.TemporaryDirectory(prefix="oci2boot-") as top:
        folder = Path(top, "root")
        run_fsck(image, folder)
        found = sorted(_files_in(folder))
    expected = (
        (path, {name: fields[name] for name in _COMPARED if name in fields})
        for path, fields in _without_devices(manifest.paths.items())
    )
    return compare(expected, _without_devices(found))


def _without_devices(paths: Iterable[_Path]) -> Iterator[_Path]:
    return ((path, fields) for path, fields in paths if fields.get("type") not in _DEVICES)


def _files_in(folder: Path) -> Iterator[tuple[str, Fields]]:
    """Yield path and fields of what was written there: what a user may make, the type, and what is in it."""
    top = os.fsencode(folder)
    yield "/", {"type": TYPES[stat.S_IFDIR]}
    for directory, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(directory, name)
            found = path.lstat()
            fields: Fields = {"type": TYPES[stat.S_IFMT(found.st_mode)]}
            if stat.S_ISREG(found.st_mode):
                with path.open("rb") as file:
                    fields |= {"size": found.st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            elif stat.S_ISLNK(found.st_mode):
                fields["target"] = text(os.fsencode(path.readlink()))
            yield text(os.fsencode(path)[len(top) :]), fields
