"""What command lines promise of the root file system: composefs by the digest of an image, dm-verity by a root hash."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cmp_to_key
from pathlib import Path
from typing import Final, Literal

from oci2boot.boot.dmverity import VERITYTAB
from oci2boot.boot.sealed import Addon, Uki, newer
from oci2boot.boot.told import DIGEST_FILE
from oci2boot.boot.type1 import FILES
from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import Error, FormatError
from oci2boot.formats import cmdline, cpio, pe
from oci2boot.formats.bls import EntryName, MenuItem, Type1, menu_key
from oci2boot.rootfs.dmverity import DEBUG_ONLY, REQUIRE_SIGNATURES, ROOT_HASH, plain_word
from oci2boot.store.roots import Mode
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import OpenedDisk, open_disk
from oci2boot.workflows.verify.esp import EspFiles, esp_of_fat, find_ukis, is_entry

Digest = VerityDigest | RootHash
"""What a root file system is known by, in either mode."""

_OPTIONS: Final = "systemd.verity_root_options="
_OFFSET: Final = "hash-offset="
_MAX_TOLD: Final = 64 << 10
_OBJECTS: Final = b"/composefs/objects/"


@dataclass(frozen=True, slots=True)
class Promise:
    """What one command line says of the root file system."""

    digests: tuple[Digest, ...]
    """Of the same file system by different hashes: one of them has to be here."""
    words: tuple[str, ...]
    """The words that say it; for a table in an initramfs, the words that would."""
    faults: tuple[str, ...] = ()
    """What lets it boot more than that."""


@dataclass(frozen=True, slots=True)
class DevicePromise(Promise):
    """Of a root file system under dm-verity."""

    hash_offset: int = 0
    """Of the hash area, in a partition that it shares with the data; 0 where it has one of its own."""
    signed: bool = False
    """The kernel must demand a signature."""

    @property
    def root_hashes(self) -> Iterator[RootHash]:
        return (digest for digest in self.digests if isinstance(digest, RootHash))


@dataclass(frozen=True, slots=True)
class Start:
    """What the firmware or a boot menu can start: a UKI, or a type 1 entry."""

    kind: Literal["UKI", "entry"]
    path: str
    promises: tuple[Promise, ...] = ()
    """Of each command line that it can be booted with."""
    addons: tuple[Addon, ...] = ()
    broken: Error | None = None
    """Why nothing is known of it."""


def find_starts(esp: EspFiles, mode: Mode) -> Iterator[Start]:
    """Yield every UKI and type 1 entry, with what they promise to a machine of this mode."""
    for path, uki in find_ukis(esp):
        try:
            if isinstance(uki, Error):
                raise uki
            start = Start("UKI", path, tuple(_uki_promises(uki, esp[path], mode)), uki.addons)
        except Error as error:
            start = Start("UKI", path, broken=error)
        yield start
    for path in filter(is_entry, esp):
        try:
            start = Start("entry", path, (_entry_promise(Type1.parse(esp[path]()), mode, esp),))
        except Error as error:
            start = Start("entry", path, broken=error)
        yield start


def _entry_promise(entry: Type1, mode: Mode, esp: EspFiles) -> Promise:
    promise = _read_line(cmdline.split(entry.options), mode, None)
    told = _told(entry, esp) if mode == "composefs" else ()
    if not told or (set(promise.digests) <= set(told) and promise.digests):
        return promise
    if not promise.digests:
        return Promise(told, tuple(f"composefs={digest}" for digest in told))
    both = f"its initramfs promises {' and '.join(map(str, told))}, its command line {' '.join(promise.words)}"
    words = f"{both}: it does not boot"
    return replace(promise, faults=(*promise.faults, words))


def _told(entry: Type1, esp: EspFiles) -> tuple[VerityDigest, ...]:
    """Return the digests that an initramfs of ours is told, by an archive of its own behind the others."""
    last = "".join(entry.every("initrd")[-1:]).lstrip("/").lower()
    names = {path.lower(): path for path in esp}
    data = esp[names[last]]() if last.startswith(f"{FILES}/".lower()) and last in names else b""
    if len(data) > _MAX_TOLD:
        return ()
    found = cpio.read(data, lambda path: path == DIGEST_FILE).get(DIGEST_FILE)
    lines = (found.content or b"").decode(errors="replace").splitlines() if found else []
    return tuple(VerityDigest.parse(line.strip()) for line in lines)


def _uki_promises(uki: Uki, read: Callable[[], bytes], mode: Mode) -> Iterator[Promise]:
    """Yield what each command line of a UKI says, with what its addons append; `read` gives the bytes of the UKI."""
    added = [word for addon in uki.addons for word in cmdline.split(addon.cmdline)]
    for line in uki.cmdlines:
        yield _read_line([*cmdline.split(line), *added], mode, read)


def _read_line(words: Sequence[str], mode: Mode, uki: Callable[[], bytes] | None) -> Promise:
    if mode == "verity":
        return _read_verity_line([plain_word(word) for word in words], uki)
    found = cmdline.find_composefs(words)
    faults = []
    if not found:
        faults.append("its command line has no composefs argument: signed, it boots any root file system")
    if any(argument.insecure for argument in found):
        faults.append("its composefs argument has the mark `?`, which makes verification optional")
    return Promise(tuple(argument.digest for argument in found), tuple(map(str, found)), tuple(faults))


def _read_verity_line(words: Sequence[str], uki: Callable[[], bytes] | None) -> DevicePromise:
    hashes = [word.partition("=")[2] for word in words if word.startswith(f"{ROOT_HASH}=")]
    options = [
        option for word in words if word.startswith(_OPTIONS) for option in word.removeprefix(_OPTIONS).split(",")
    ]
    if not hashes and uki:
        fields = _veritytab(uki())
        hashes, options = fields[3:4], (fields[4].split(",") if len(fields) > 4 else [])
    faults = []
    if not hashes:
        faults.append("its command line has no root hash: signed, it boots any root file system")
    if len(hashes) > 1:
        faults.append(f"its command line has {len(hashes)} root hashes")
    if found := DEBUG_ONLY.intersection(options):
        faults.append(f"its option {', '.join(sorted(found))} has the kernel only log what fails verification")
    offset = next((option.removeprefix(_OFFSET) for option in options if option.startswith(_OFFSET)), "0")
    if not offset.isdecimal() or len(offset) > 18:
        raise FormatError(f"its hash tree begins at {offset[:40]!r}")
    return DevicePromise(
        tuple(map(RootHash.parse, hashes)),
        tuple(f"{ROOT_HASH}={one}" for one in hashes),
        tuple(faults),
        hash_offset=int(offset),
        signed=REQUIRE_SIGNATURES in words,
    )


def _veritytab(uki: bytes) -> list[str]:
    """Return the fields of the root's line in the initramfs's table; nothing where there is none. veritytab(5)"""
    for section in pe.parse(uki).sections_named(b".initrd"):
        found = cpio.read(bytes(pe.contents(uki, section)), lambda path: path == VERITYTAB).get(VERITYTAB)
        if found and found.content is not None:
            lines = [line.split() for line in found.content.decode(errors="replace").splitlines()]
            return next((fields for fields in lines if fields[:1] == ["root"]), [])
    return []


# What a disk promises


@dataclass(frozen=True, slots=True)
class Promised:
    path: str
    """On the ESP, of the UKI or type 1 entry."""
    uki: Uki | None
    """None for a type 1 entry."""
    promise: Promise

    @property
    def argument(self) -> str:
        """The word of a command line that says it; for a table in an initramfs, the word that would."""
        return self.promise.words[0]

    @property
    def digest(self) -> Digest:
        return self.promise.digests[0]

    @property
    def verity(self) -> DevicePromise | None:
        """The promise of a root file system under dm-verity."""
        return self.promise if isinstance(self.promise, DevicePromise) else None


def find_promise(disk: Path) -> Promised:
    """Return what the newest UKI on a disk promises that promises a root file system, else the first type 1 entry."""
    with open_disk(disk) as opened:
        esp = esp_of_fat(opened.esp())
        found = list(_promised_by_ukis(esp))
        if found:
            by_age = cmp_to_key(newer)
            return _that_is_here(max(found, key=lambda one: by_age(one[0]))[1], opened)
        entries = sorted(_promised_by_entries(esp), key=lambda one: menu_key(one[0]))
    if not entries:
        raise FormatError(f"nothing on {disk} promises a root file system that could be verified")
    return entries[0][1]


def _that_is_here(promised: Promised, disk: OpenedDisk) -> Promised:
    """Put first, of several digests, the one that the disk has: that is what boots."""
    promise = promised.promise
    if len(promise.digests) < 2:
        return promised
    with suppress(Error):  # a root that is encrypted, or damaged, says nothing
        root = InstalledRoot(disk.root())
        pairs = sorted(
            zip(promise.digests, promise.words, strict=True),
            key=lambda pair: isinstance(pair[0], RootHash) or root.find(_OBJECTS + pair[0].path.encode()) is None,
        )
        digests, words = zip(*pairs, strict=True)
        return replace(promised, promise=replace(promise, digests=digests, words=words))
    return promised


def _promised_by_ukis(esp: EspFiles) -> Iterator[tuple[Uki, Promised]]:
    for path, uki in find_ukis(esp):
        if not isinstance(uki, Error) and (promise := _first(uki, esp[path])):
            yield uki, Promised(path, uki, promise)


def _first(uki: Uki, read: Callable[[], bytes]) -> Promise | None:
    for promise in _uki_promises(uki, read, "composefs"):
        if promise.digests:
            return promise
    with suppress(FormatError):
        promise = next(_uki_promises(uki, read, "verity"))
        return None if promise.faults else promise
    return None


def _promised_by_entries(esp: EspFiles) -> Iterator[tuple[MenuItem, Promised]]:
    for path in filter(is_entry, esp):
        try:
            entry = Type1.parse(esp[path]())
            name = EntryName.parse(path.rpartition("/")[2])
            promise = _entry_promise(entry, "composefs", esp)
        except FormatError:
            continue
        if promise.digests:
            item = MenuItem(name, entry.last("sort-key"), entry.last("machine-id"), entry.last("version"))
            yield item, Promised(path, None, promise)
