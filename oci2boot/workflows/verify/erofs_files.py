"""Every file of an EROFS image, by erofs-utils: nothing else here knows the compressions."""

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from oci2boot.errors import ToolError
from oci2boot.system.files import plain_errors
from oci2boot.system.run import run, said_by
from oci2boot.tree.diff import TYPES, Fields, text

FSCK: Final = "fsck.erofs"
_OLDEST: Final = (1, 8)
"""The first that knows all compressions."""


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

    An ordinary user gets no device nodes, nor the owners and modes of the image.
    """
    with plain_errors(ToolError, f"copy the file system for {FSCK}"), tempfile.NamedTemporaryFile() as file:
        file.writelines(image)
        file.flush()
        preserve = [] if folder is None else ["--no-preserve"]
        run([FSCK, "--extract" if folder is None else f"--extract={folder}", *preserve, file.name])


def files_in(folder: Path) -> Iterator[tuple[str, Fields]]:
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
