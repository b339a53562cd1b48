"""Which entry of the menu is first, and the renames that make it so."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from oci2boot.errors import TargetError
from oci2boot.formats import bls
from oci2boot.sysroot.bootdir import BootDirectory, BootEntry
from oci2boot.sysroot.bootdir_steps import Rename


@dataclass(frozen=True)
class Order:
    entries: tuple[BootEntry, ...]
    """In the menu's order."""
    wanted: str
    steps: tuple[Rename, ...]

    def problems(self, directory: BootDirectory) -> Iterator[str]:
        if self.entries[0].id != self.wanted:
            yield f"{self.entries[0].path}, of another system, stands before {self.wanted}"
        if why := replace(directory, entries=self.entries).overridden(self.wanted):
            yield why


def make_first(entries: Sequence[BootEntry], wanted: str, tries: int | None, added: Collection[str]) -> Order:
    """Return the menu with one entry first, and the renames that make it so; new ones are named as they will be."""
    target = next(entry for entry in entries if entry.id == wanted)
    others = [entry for entry in entries if entry.id != wanted]
    name = target.name
    if wanted in added or name.left == 0:
        name = name.counted(tries if tries and _falls_back(target, others, tries) else None)
    elif name.left and not _falls_back(target, others, name.left + (name.done or 0)):
        name = name.counted(None)
    taken = {entry.path.lower() for entry in others}
    new_target = target.renamed(name)
    if new_target.path.lower() in taken:
        raise TargetError(f"the boot directory has {new_target.path} as well as {target.path}", hint="remove one")
    steps = [] if name == target.name else [Rename(target.path, new_target.path)]
    before = [entry for entry in _ordered([new_target, *others]) if _stands_before(entry, new_target) and entry.own]
    result = {entry.path: entry for entry in others}
    # From the last: so the old first one stays first until the wanted one is.
    for entry in before[::-1]:
        done = entry.tries_done or 0
        while (demoted := entry.renamed(entry.name.counted(0, done))).path.lower() in taken:
            done += 1
        result[entry.path] = demoted
        steps.append(Rename(entry.path, demoted.path))
    return Order(tuple(_ordered([new_target, *result.values()])), wanted, tuple(steps))


def _ordered(entries: Iterable[BootEntry]) -> list[BootEntry]:
    return sorted(entries, key=lambda entry: bls.menu_key(entry.item))


def _stands_before(entry: BootEntry, other: BootEntry) -> bool:
    return bls.compare_items(entry.item, other.item) <= 0 and entry is not other


def _falls_back(target: BootEntry, others: Sequence[BootEntry], tries: int) -> bool:
    """Say whether a good entry would boot after so many failures of this one."""
    failed = target.renamed(target.name.counted(0, tries))
    shown = target.renamed(target.name.counted(tries))
    demoted = [
        entry.renamed(entry.name.counted(0, entry.tries_done or 0))
        if entry.own and _stands_before(entry, shown)
        else entry
        for entry in others
    ]
    first = _ordered([failed, *demoted])[0]
    return first is not failed and not first.bad and first.name.left in (None, 0)


def restore_good(entries: Sequence[BootEntry], keep: Collection[str]) -> Rename | None:
    """Return the rename that lets a good entry count again, where without it only ones that failed would boot.

    `entries` are what is left of a menu; one of the ids in `keep` is preferred.
    """
    first, *others = _ordered(entries)
    if not first.bad:
        given_up = first.renamed(first.name.counted(0, (first.tries_done or 0) + (first.tries_left or 0)))
        if not first.tries_left or not _ordered([given_up, *others])[0].bad:
            return None
    put_back = [entry for entry in (first, *others) if entry.own and entry.tries_left == 0 and not entry.bad]
    best = min(put_back, key=lambda entry: entry.id not in keep, default=None)
    return Rename(best.path, best.renamed(best.name.counted(None)).path) if best else None
