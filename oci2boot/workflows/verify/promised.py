"""What a disk promises to boot: the image of composefs, or the root hash of dm-verity, that its newest entry names."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from oci2boot.boot.sealed import Uki, newer
from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import Error, FormatError
from oci2boot.formats import cmdline
from oci2boot.formats.bls import EntryName, MenuItem, Type1, menu_key
from oci2boot.target.opened import open_disk
from oci2boot.workflows.verify.dm_verity import Promise, promises_of
from oci2boot.workflows.verify.esp import EspFiles, esp_of_fat, find_ukis, is_entry


@dataclass(frozen=True, slots=True)
class Promised:
    path: str
    """On the ESP, of the UKI or type 1 entry."""
    uki: Uki | None
    """None for a type 1 entry."""
    argument: str
    """The word of a command line that says it; of a table in an initramfs, the word that would."""
    digest: VerityDigest | RootHash
    verity: Promise | None = None
    """Of a root file system under dm-verity."""


def find_promise(disk: Path) -> Promised:
    """Return what the newest UKI on a disk promises that promises a root file system, else the first type 1 entry."""
    with open_disk(disk) as opened:
        esp = esp_of_fat(opened.esp())
        found = list(_of_ukis(esp))
        if found:
            by_age = cmp_to_key(newer)
            return max(found, key=lambda one: by_age(one[0]))[1]
        entries = sorted(_of_entries(esp), key=lambda one: menu_key(one[0]))
    if not entries:
        raise FormatError(f"nothing on {disk} promises a root file system that could be verified")
    return entries[0][1]


def _of_ukis(esp: EspFiles) -> Iterator[tuple[Uki, Promised]]:
    for path, uki in find_ukis(esp):
        if isinstance(uki, Error):
            continue
        if uki.about_composefs:
            argument = uki.about_composefs[0]
            yield uki, Promised(path, uki, str(argument), argument.digest)
            continue
        try:
            promise = next(promises_of(path, uki, esp[path]()))
        except FormatError:
            continue
        yield uki, Promised(path, uki, f"roothash={promise.root_hash}", promise.root_hash, promise)


def _of_entries(esp: EspFiles) -> Iterator[tuple[MenuItem, Promised]]:
    for path in filter(is_entry, esp):
        try:
            entry = Type1.parse(esp[path]())
            name = EntryName.parse(path.rpartition("/")[2])
            arguments = cmdline.find_composefs(cmdline.split(entry.options))
        except FormatError:
            continue
        if arguments:
            item = MenuItem(name, entry.last("sort-key"), entry.last("machine-id"), entry.last("version"))
            yield item, Promised(path, None, str(arguments[0]), arguments[0].digest)
