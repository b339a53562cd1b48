"""The boot directory of a machine, as a value: an EFI system partition, or an XBOOTLDR partition, and its menu.

Entries stand in the order in which systemd-boot would show them; the first is what boots, unless something else says
so: `default` in loader.conf, or the variables LoaderEntryDefault and LoaderEntryOneShot. What an entry boots is read
from its own command line. An entry that cannot be read is a problem, and never an end: the directory may belong to
several systems, and FAT keeps no one from writing to it.

`bootdir_plan` plans changes, `bootdir_apply` makes them.
"""

import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, cast

from oci2boot.boot.names import (
    EXTRA,
    GLOBAL_ADDONS,
    LINUX,
    MAX_ADDONS,
    MAX_UKI,
    RECORD,
    addons_folder,
    is_addon,
    is_program,
)
from oci2boot.boot.sealed import read_addon, read_head
from oci2boot.boot.type1 import ENTRIES, FILES
from oci2boot.digest import RootHash
from oci2boot.errors import Error, FormatError, LimitError, TargetError
from oci2boot.formats import bls, cmdline, os_release
from oci2boot.formats.bls import EntryName, MenuItem, Type1
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.system.files import plain_errors

MAX_FILES: Final = 1 << 16
MAX_DEPTH: Final = 32
MAX_ENTRIES: Final = 1024
MAX_CONF: Final = 64 << 10

LOADER_CONF: Final = "loader/loader.conf"
TEMPORARY: Final = ".oci2boot-"
"""Begins the name of a file that is not complete yet; it ends neither in `.efi` nor in `.conf`."""

_OURS: Final = ("efi/linux/", "efi/boot/", "efi/oci2boot/", "loader/")
"""Where UKIs lie; what other systems have elsewhere may be unreadable."""


@dataclass(frozen=True, kw_only=True)
class BootEntry:
    """One line of the menu; of a UKI with several profiles, the first."""

    path: str
    """Of the UKI or the `.conf`, from the root of the partition, with slashes."""
    name: EntryName
    kind: Literal["uki", "type1"]
    sort_key: str | None
    version: str | None
    title: str | None
    machine_id: str | None
    arguments: tuple[ComposefsArg, ...]
    """Each that it may be booted with: on the command line of any profile, or by an addon of its own."""
    files: Mapping[str, int]
    """Everything that it needs, itself among it, with the sizes in bytes."""
    mtime: int
    """When it was written, in seconds since 1970; FAT knows local time only, and two seconds are one."""
    root_hashes: tuple[RootHash, ...] = ()
    """Each that a UKI may be booted with, of a root file system under dm-verity."""

    @property
    def id(self) -> str:
        return self.name.id

    @property
    def tries_left(self) -> int | None:
        return self.name.left

    @property
    def tries_done(self) -> int | None:
        return self.name.done if self.name.left is None else self.name.done or 0

    @property
    def bad(self) -> bool:
        """Whether it failed as often as it may; one that was only put back has no failed attempt."""
        return self.name.left == 0 and bool(self.name.done)

    @property
    def own(self) -> bool:
        """Whether it is ours to rename and remove: it boots a composefs image, from where we put what boots, or
        a slot that we wrote.
        """
        ours = self.kind == "uki" or any(path.lower().startswith(f"{FILES}/".lower()) for path in self.files)
        return ours and bool(self.arguments or (self.root_hashes and self.record))

    @property
    def record(self) -> str | None:
        """The path of what the entry's image is remembered by."""
        return next((path for path in self.files if path.lower().endswith(f"{EXTRA}/{RECORD}")), None)

    @property
    def item(self) -> MenuItem:
        return MenuItem(self.name, self.sort_key, self.machine_id, self.version)

    def renamed(self, name: EntryName) -> "BootEntry":
        path = f"{self.path.rpartition('/')[0]}/{name}"
        files = {path if old == self.path else old: size for old, size in self.files.items()}
        return replace(self, path=path, name=name, files=files)


@dataclass(frozen=True, kw_only=True)
class BootDirectory:
    path: Path
    entries: tuple[BootEntry, ...]
    """In systemd-boot's order."""
    files: Mapping[str, int]
    """Every file there is, with its size in bytes."""
    free: int
    """In bytes."""
    size: int
    """Of the whole file system, in bytes."""
    cluster: int
    """What space is given out in, in bytes."""
    problems: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Programs and entries whose promises could not be read: nothing may be deleted then as unpromised."""
    promises: Mapping[str, tuple[ComposefsArg, ...]] = field(default_factory=dict)
    """By path, of every program, addon and entry anywhere on the partition, those of other tools among them."""
    default_pattern: str | None = None
    """`default` in loader.conf: it goes before the order."""

    @property
    def default(self) -> BootEntry | None:
        """What boots if nobody chooses."""
        return next(iter(self.entries), None)

    def find(self, id_: str) -> BootEntry | None:
        """Return the entry of an id, with or without a boot counter in it, such as in LoaderEntrySelected."""
        wanted = entry_id(id_)
        return next((entry for entry in self.entries if entry.id == wanted), None)

    @cached_property
    def by_lower(self) -> Mapping[str, str]:
        """The paths of the files, by what FAT takes for the same."""
        return {path.lower(): path for path in self.files}

    def overridden(self, wanted: str, variables: Sequence[str] = ()) -> str | None:
        """Return why another entry than `wanted` boots although this is the first, or None.

        `variables` are the values of LoaderEntryOneShot and LoaderEntryDefault, as far as they are set.
        """
        for origin, pattern in [
            *(("a variable of the boot loader", value) for value in variables),
            ("`default` in loader/loader.conf", self.default_pattern),
        ]:
            if pattern and pattern.startswith("@"):
                return f"{origin} is {pattern}, which may choose another entry than {wanted}"
            chosen = [entry for entry in self.entries if pattern and _matches(pattern, entry)]
            if chosen and chosen[0].id != entry_id(wanted):
                return f"{origin} chooses {chosen[0].id}, not {wanted}"
            if chosen:
                return None
        return None


def entry_id(name: str) -> str:
    """Return the id of an entry by its file name, its path, or an id as boot loader variables have it."""
    name = name.rpartition("/")[2].rpartition("\\")[2].partition("@")[0]
    try:
        return EntryName.parse(name).id
    except FormatError:
        return name.lower()


def _matches(pattern: str, entry: BootEntry) -> bool:
    # systemd-boot's own globs; a counter is part of what they are compared with.
    return fnmatchcase(str(entry.name).lower(), pattern.lower()) or fnmatchcase(entry.id, pattern.lower())


def read_boot_directory(esp: Path) -> BootDirectory:
    """Read the menu and the space of the file system at `esp`."""
    with plain_errors(TargetError, f"read the boot directory {esp}"):
        if not esp.is_dir():
            raise TargetError(f"{esp} is not a directory", hint="mount the EFI system partition there")
        reader = _Reader(esp.resolve())
        reader.walk("", 0)
        entries = reader.read()
        space = os.statvfs(esp)
    return BootDirectory(
        path=reader.top,
        entries=tuple(sorted(entries, key=lambda entry: bls.menu_key(entry.item))),
        files=reader.files,
        free=space.f_bavail * space.f_frsize,
        size=space.f_blocks * space.f_frsize,
        cluster=space.f_bsize,
        problems=tuple(reader.problems),
        unreadable=tuple(reader.unreadable),
        promises=reader.promises,
        default_pattern=reader.default_pattern(),
    )


@contextmanager
def mapped(path: Path, limit: int) -> Iterator[bytes]:
    """Give the bytes of a regular file, read as far as they are looked at: a UKI may have a hundred megabytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("it is not a regular file")
        if status.st_size > limit:
            raise LimitError(f"it has {status.st_size} bytes, at most {limit} are read")
        if not status.st_size:
            yield b""
            return
        with mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ) as data:
            yield cast("bytes", data)
    finally:
        os.close(fd)


@dataclass
class _Reader:
    top: Path
    files: dict[str, int] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    promises: dict[str, tuple[ComposefsArg, ...]] = field(default_factory=dict)
    root_hashes: dict[str, tuple[RootHash, ...]] = field(default_factory=dict)

    def walk(self, folder: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise LimitError(f"{self.top / folder} lies more than {MAX_DEPTH} directories deep")
        for item in sorted(os.scandir(self.top / folder), key=lambda item: item.name):
            path = f"{folder}/{item.name}" if folder else item.name
            if not path.isprintable():
                self.problems.append(f"{path!r}: a name that FAT cannot have; passed over")
            elif item.is_symlink():
                self.problems.append(f"{path}: a symbolic link, which firmware does not know; passed over")
            elif item.is_dir(follow_symlinks=False):
                self.walk(path, depth + 1)
            elif item.is_file(follow_symlinks=False):
                status = item.stat(follow_symlinks=False)
                self.files[path], self.times[path] = status.st_size, int(status.st_mtime)
                if len(self.files) > MAX_FILES:
                    raise LimitError(f"{self.top} has more than {MAX_FILES} files")

    def read(self) -> list[BootEntry]:
        """Return the entries; what is wrong with others is kept."""
        for path in self.files:
            if is_program(path):
                with self._named(path) if path.lower().startswith(_OURS) else suppress(Error, OSError):
                    self._read_program(path)
        entries = []
        for path in self.files:
            folder, _, name = path.rpartition("/")
            place = (folder.lower(), Path(name).suffix.lower())
            if place in ((LINUX.lower(), ".efi"), (ENTRIES.lower(), ".conf")) and name[0] != ".":
                with self._named(path):
                    entry = self._uki(path, EntryName.parse(name)) if place[1] == ".efi" else self._type1(path, name)
                    if entry:
                        entries.append(entry)
            elif folder.lower() == GLOBAL_ADDONS and self.promises.get(path):
                self.problems.append(f"{path}: an addon with a composefs argument for every entry")
        if len(entries) > MAX_ENTRIES:
            raise LimitError(f"{self.top} has {len(entries)} boot menu entries, at most {MAX_ENTRIES} are read")
        ids: dict[str, str] = {}
        for entry in entries:
            if entry.id in ids:
                self.problems.append(f"{entry.path}: the same entry as {ids[entry.id]}, counted differently")
            ids[entry.id] = entry.path
        return entries

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        try:
            yield
        except Error as error:
            self.problems.append(f"{path}: {error.message}")
            self.unreadable.append(path)
        except OSError as error:
            self.problems.append(f"{path}: {error.strerror}")
            self.unreadable.append(path)

    def _read_program(self, path: str) -> None:
        with mapped(self.top / path, MAX_UKI) as data:
            if is_addon(path):
                texts = [read_addon(data)]
            else:
                head = read_head(data)
                texts = list(head.cmdlines) if head else []
        lines = [cmdline.split(text) for text in texts]
        arguments = [argument for words in lines for argument in cmdline.find_composefs(words)]
        hashes = [root_hash for words in lines for root_hash in cmdline.find_root_hashes(words)]
        self.promises[path] = tuple(dict.fromkeys(arguments))
        self.root_hashes[path] = tuple(dict.fromkeys(hashes))

    def _uki(self, path: str, name: EntryName) -> BootEntry | None:
        if path not in self.promises:
            return None  # why is among the problems
        with mapped(self.top / path, MAX_UKI) as data:
            title, version, sort_key = describe_uki(data)
        folder = addons_folder(path).lower()
        addons = [other for other in self.files if other.rpartition("/")[0].lower() == folder]
        programs = [other for other in addons if is_addon(other)]
        if len(programs) > MAX_ADDONS:
            raise LimitError(f"it has {len(programs)} addons, at most {MAX_ADDONS} are read")
        every = [argument for part in (path, *programs) for argument in self.promises.get(part, ())]
        hashes = [root_hash for part in (path, *programs) for root_hash in self.root_hashes.get(part, ())]
        files = {part: self.files[part] for part in (path, *addons)}
        return BootEntry(
            path=path, name=name, kind="uki", sort_key=sort_key, version=version, title=title, machine_id=None,
            arguments=tuple(dict.fromkeys(every)), files=files, mtime=self.times[path],
            root_hashes=tuple(dict.fromkeys(hashes)),
        )  # fmt: skip

    def _type1(self, path: str, name: str) -> BootEntry | None:
        with mapped(self.top / path, MAX_CONF) as data:
            entry = Type1.parse(bytes(data))
        by_lower = {other.lower(): other for other in self.files}
        files = {path: self.files[path]}
        for part in entry.paths:
            if part.lower() not in by_lower:
                raise FormatError(f"it boots {part}, which is not there")
            files[by_lower[part.lower()]] = self.files[by_lower[part.lower()]]
        if not any(entry.last(key) for key in ("linux", "efi", "uki")):
            raise FormatError("it boots nothing")
        arguments = cmdline.find_composefs(cmdline.split(entry.options))
        self.promises[path] = tuple(dict.fromkeys(arguments))
        every = [argument for part in (path, *files) for argument in self.promises.get(part, ())]
        return BootEntry(
            path=path, name=EntryName.parse(name), kind="type1", sort_key=entry.last("sort-key"),
            version=entry.last("version"), title=entry.last("title"), machine_id=entry.last("machine-id"),
            arguments=tuple(dict.fromkeys(every)), files=files, mtime=self.times[path],
        )  # fmt: skip

    def default_pattern(self) -> str | None:
        """Return the last `default` of loader.conf. loader.conf(5)."""
        path = next((path for path in self.files if path.lower() == LOADER_CONF), None)
        if path is None:
            return None
        text = ""
        with self._named(path), mapped(self.top / path, MAX_CONF) as data:
            text = bytes(data).decode(errors="replace")
        words = [line.split(None, 1) for line in text.splitlines() if not line.strip().startswith("#")]
        return next((word[1].strip() for word in words[::-1] if len(word) == 2 and word[0] == "default"), None)


def describe_uki(data: bytes) -> tuple[str, str | None, str | None]:
    """Return title, version and sort key."""
    head = read_head(data)
    if not head:
        raise FormatError("it is not a UKI")
    title, version, sort_key = os_release.pick(os_release.parse(head.os_release))
    if title is None:
        raise FormatError("its os-release has no name: systemd-boot passes it over")
    return title, version, sort_key
