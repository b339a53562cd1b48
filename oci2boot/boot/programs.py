"""A program of the image with the libraries that it needs, as files for an initramfs. Where ld.so(8) looks."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from oci2boot.errors import ImageError
from oci2boot.formats import elf
from oci2boot.tree.files import Read, find_file, list_directory, read_content, show
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File

MAX_PROGRAM: Final = 64 << 20
MAX_LIBRARIES: Final = 64

PROGRAM_DIRECTORIES: Final = (b"usr/bin", b"usr/sbin", b"bin", b"sbin")
_LIBRARY_DIRECTORIES: Final = (b"usr/lib64", b"usr/lib", b"lib64", b"lib")


def find_program(tree: Directory, name: bytes) -> tuple[bytes, File] | None:
    """Return a program's path without symlinks and its file."""
    for directory in PROGRAM_DIRECTORIES:
        place = look_up(tree, directory + b"/" + name)
        if place and isinstance(place[1], File):
            return place[0], place[1]
    return None


def libraries(tree: Directory, read: Read, programs: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return path → content of every library and loader that these programs (paths in the image) are linked with.

    A path is that under which the loader asks for the library, with the symlinks of its directory followed.
    """
    contents: dict[bytes, bytes] = {}
    asked: set[tuple[bytes, ...]] = set()
    queue = deque(programs)
    while queue:
        path = queue.popleft()
        file = find_file(tree, path)
        content = contents.get(path) or (read_content(file, read, path, MAX_PROGRAM) if file else b"")
        if not elf.is_elf(content):
            continue
        parsed = elf.parse(content)
        if parsed.interpreter:
            _add(tree, read, (parsed.interpreter.encode(),), contents, queue)
        directories = _search_path(tree, path, parsed)
        for name in parsed.needed:
            candidates = tuple(directory + b"/" + name.encode() for directory in directories)
            if candidates not in asked:
                asked.add(candidates)
                if not _add(tree, read, candidates, contents, queue):
                    raise ImageError(f"/{show(path)} needs the library {name}, which the image does not have")
        if len(contents) > MAX_LIBRARIES:
            raise ImageError(f"/{show(path)} needs more than {MAX_LIBRARIES} libraries")
    return contents


def _search_path(tree: Directory, path: bytes, parsed: elf.Elf) -> list[bytes]:
    origin = path.rpartition(b"/")[0]
    directories = [
        directory.encode().replace(b"${ORIGIN}", origin).replace(b"$ORIGIN", origin) for directory in parsed.runpath
    ]
    multiarch = [b"usr/lib/" + name for name, _ in list_directory(tree, b"usr/lib") if b"-linux-gnu" in name]
    return [*directories, *multiarch, *_LIBRARY_DIRECTORIES]


def _add(
    tree: Directory, read: Read, candidates: Iterable[bytes], found: dict[bytes, bytes], queue: deque[bytes]
) -> bool:
    for candidate in candidates:
        directory, _, name = candidate.rpartition(b"/")
        parent = look_up(tree, directory)
        file = find_file(tree, candidate)
        if parent and file:
            path = parent[0] + b"/" + name
            if path not in found:
                found[path] = read_content(file, read, path, MAX_PROGRAM)
                queue.append(path)
            return True
    return False
