"""Changes of a boot directory, planned: what is written, renamed and removed, in which order, and the space it takes.

Whatever the number of steps that were made, what booted before still boots, until the wanted entry is complete and
first. An entry becomes first by putting back exactly those of our entries that stand before it: renamed to `+0-N`, as
if their attempts were used up, they go to the end of the menu, and stay bootable. Booting one of them from the menu
and blessing it takes the counter off, and so makes it count again.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from oci2boot.boot.names import EXTRA, LINUX, MAX_UKI, PROGRAM, RECORD, is_addon, is_program
from oci2boot.boot.product import Product
from oci2boot.boot.type1 import ENTRIES, FILES
from oci2boot.errors import FormatError, LimitError, TargetError
from oci2boot.formats import bls, cmdline, version
from oci2boot.formats.bls import EntryName, Type1
from oci2boot.sysroot.bootdir import (
    LOADER_CONF,
    TEMPORARY,
    BootDirectory,
    BootEntry,
    describe_uki,
    entry_id,
    mapped,
)
from oci2boot.sysroot.bootdir_order import make_first, restore_good
from oci2boot.sysroot.bootdir_steps import (
    BootPlan,
    Remove,
    RemoveDirectory,
    Source,
    Step,
    Write,
    content,
    opened,
    peak,
    sha256_of,
    source_size,
)

MAX_SUFFIX: Final = 100
ONCE: Final = (LOADER_CONF, f"{ENTRIES}.srel")
"""Written only where there is none: it is the user's, or another system's."""
RESERVE: Final = 20
"""One part in so many of the file system is kept free, where removing old entries makes that possible."""


def plan_boot(
    directory: BootDirectory,
    new: Mapping[str, Source],
    *,
    first: str,
    keep: frozenset[str] = frozenset(),
    tries: int | None = None,
) -> BootPlan:
    """Plan to write files, and to make one entry first: `first` is its path in `new`, or the id of one that is there.

    `keep` are ids of entries that must not make room: what is booted, pinned, or to be rolled back to. With `tries` a
    new entry may fail so often, if there is a good one to fall back to. `TargetError` names the bytes that are missing.
    """
    check_names(new)
    groups = {path: _place(directory, path, new) for path in new if is_entry(path)}
    wanted = groups[first].id if first in groups else entry_id(first)
    added = {group.id: group.entry for group in groups.values() if not group.there}
    if wanted not in {entry.id for entry in (*directory.entries, *added.values())}:
        raise TargetError(f"the boot directory has no entry {first}")
    writes, problems = _writes(directory, new, groups)
    start = [*_leftovers(directory, new, groups)]
    victims = _victims(directory, {wanted, *map(entry_id, keep), *(group.id for group in groups.values())})
    removed: list[BootEntry] = []
    while True:
        stay = [entry for entry in directory.entries if entry not in removed]
        order = make_first([*stay, *added.values()], wanted, tries, added)
        # An entry is written under the name that it is to have: with its counter, or put back already.
        final = {added[entry.id].path: entry.path for entry in order.entries if entry.id in added}
        steps: list[Step] = [
            *start,
            *_removals(directory, removed),
            *(replace(write, path=final.get(write.path, write.path)) for write in writes),
            *(rename for rename in order.steps if rename.path not in final),
        ]
        needed = peak(directory, steps)
        if needed + directory.size // RESERVE <= directory.free or not victims:
            break
        removed.append(victims.pop(0))
    if needed > directory.free:
        raise TargetError(
            f"the boot directory {directory.path} has {directory.free} bytes free, {needed} are needed",
            hint="remove entries or files of other systems there, or use a larger partition",
        )
    if writes and directory.free - needed < directory.size // RESERVE:
        problems.append(f"less than {100 // RESERVE} % of the boot directory stay free")
    at = {entry.id: entry.path for entry in order.entries}
    paths = {path: to for group in groups.values() for path, to in group.paths.items()}
    paths |= {path: at[group.id] for path, group in groups.items()}
    return BootPlan(
        steps=tuple(steps),
        first=wanted,
        needed=needed,
        paths={path: paths.get(path, path) for path in new},
        removed=tuple(entry.id for entry in removed),
        problems=(*problems, *order.problems(directory)),
    )


def _victims(directory: BootDirectory, protected: Collection[str]) -> list[BootEntry]:
    """Return what may make room, the oldest first: never what boots now, nor the first entry of ours."""
    own = [entry for entry in directory.entries if entry.own]
    firsts = (*directory.entries[:1], *own[:1])
    victims = [entry for entry in own if entry.id not in protected and entry not in firsts]
    return sorted(victims, key=lambda entry: (entry.mtime, version.key(entry.version or "")))


def plan_default(directory: BootDirectory, id_: str, *, tries: int | None = None) -> BootPlan:
    """Plan to make an entry first that is there, as for a rollback; with `tries` one that was put back is counted."""
    wanted = directory.find(id_)
    if wanted is None:
        raise TargetError(f"the boot directory has no entry {id_}")
    order = make_first(directory.entries, wanted.id, tries, ())
    steps = (*_leftovers(directory, {}, {}), *order.steps)
    return BootPlan(
        steps=steps, first=wanted.id, needed=peak(directory, steps), paths={}, problems=tuple(order.problems(directory))
    )


def plan_remove(directory: BootDirectory, id_: str, *, keep: frozenset[str] = frozenset()) -> BootPlan:
    """Plan to remove an entry and what only it needs; `keep` are ids of those that must stay, as the booted one."""
    entry = directory.find(id_)
    if entry is None:
        raise TargetError(f"the boot directory has no entry {id_}")
    if not entry.own:
        raise TargetError(f"{entry.path} is not ours to remove: it boots no image that was installed here")
    if entry.id in set(map(entry_id, keep)):
        raise TargetError(f"{entry.path} is booted or pinned", hint="boot another deployment first, or unpin it")
    others = [other for other in directory.entries if other.id != entry.id]
    if not any(other.own for other in others):
        raise TargetError(f"{entry.path} is the last entry that boots this system")
    good = restore_good(others, set(map(entry_id, keep)))
    restored = [
        other.renamed(EntryName.parse(good.to.rpartition("/")[2])) if good and other.path == good.path else other
        for other in others
    ]
    first = min(restored, key=lambda other: bls.menu_key(other.item))
    steps = (*_leftovers(directory, {}, {}), *([good] if good else []), *_removals(directory, [entry]))
    return BootPlan(steps=steps, first=first.id, needed=0, paths={}, removed=(entry.id,))


def check_names(new: Mapping[str, Source]) -> None:
    """Refuse paths that FAT cannot have, or takes for the same."""
    seen: dict[str, str] = {}
    for path in new:
        for name in path.split("/"):
            if not re.fullmatch(r"[A-Za-z0-9+_.-]+", name) or name[-1] == "." or len(name) > bls.MAX_NAME:
                raise TargetError(f"not a path for a boot directory: {path[:200]!r}")
        if path.lower() in seen:
            raise TargetError(f"{path} and {seen[path.lower()]} are the same on FAT")
        seen[path.lower()] = path


def is_entry(path: str) -> bool:
    """Say whether a new file is one for the menu, by its place."""
    folder, _, name = path.rpartition("/")
    suffix = Path(name).suffix
    return (folder, suffix) in ((LINUX, PROGRAM), (ENTRIES, ".conf")) and not is_addon(name)


@dataclass(frozen=True)
class _Group:
    """A new entry, where it goes, and what goes with it."""

    entry: BootEntry
    paths: Mapping[str, str]
    there: bool
    """Byte for byte."""

    @property
    def id(self) -> str:
        return self.entry.id


def _place(directory: BootDirectory, path: str, new: Mapping[str, Source]) -> _Group:
    """Find the name of a new entry: its own, or the first with a suffix that no other entry has."""
    folder, _, name = path.rpartition("/")
    asked = EntryName.parse(name).counted(None)
    names = {entry_id(other) for other in directory.files if other.rpartition("/")[0].lower() == folder.lower()}
    mates = [other for other in new if other.startswith(f"{path}{EXTRA}/")]
    free = None
    for number in range(MAX_SUFFIX):
        # A dot: for version order it comes after nothing, `-` before.
        candidate = replace(asked, stem=f"{asked.stem}.{number}" if number else asked.stem)
        there = directory.find(candidate.id)
        paths = {path: there.path if there else f"{folder}/{candidate}"}
        paths |= {mate: f"{folder}/{candidate}{EXTRA}/{mate.rpartition('/')[2]}" for mate in mates}
        # Addons beyond these are the machine's own, and no reason for a second entry.
        if there and all(_same(directory, to, new[part]) for part, to in paths.items()):
            return _Group(there, paths, there=True)
        if free is None and candidate.id not in names:
            free = paths
    if free is None:
        raise TargetError(f"the boot directory has {MAX_SUFFIX} other entries called {asked}", hint="remove some")
    return _Group(_describe(path, free, new), free, there=False)


def _describe(path: str, paths: Mapping[str, str], new: Mapping[str, Source]) -> BootEntry:
    """Return the entry that a new file will be."""
    to = paths[path]
    name = EntryName.parse(to.rpartition("/")[2])
    files = {paths[part]: source_size(new[part]) for part in paths}
    if is_program(path):
        try:
            with opened(new[path]) as data:
                title, number, sort_key = describe_uki(data)
        except (FormatError, LimitError) as error:
            raise TargetError(f"{path} cannot be booted: {error.message}") from error
        return BootEntry(
            path=to,
            name=name,
            kind="uki",
            sort_key=sort_key,
            version=number,
            title=title,
            machine_id=None,
            arguments=(),
            files=files,
            mtime=0,
        )
    conf = Type1.parse(content(new[path]))
    lower = {other.lower(): other for other in new}
    for part in conf.paths:
        if part.lower() in lower:
            files[part] = source_size(new[lower[part.lower()]])
    arguments = tuple(cmdline.find_composefs(cmdline.split(conf.options)))
    last = conf.last
    return BootEntry(
        path=to,
        name=name,
        kind="type1",
        sort_key=last("sort-key"),
        version=last("version"),
        title=last("title"),
        machine_id=last("machine-id"),
        arguments=arguments,
        files=files,
        mtime=0,
    )


def _same(directory: BootDirectory, path: str, source: Source) -> bool:
    actual = directory.by_lower.get(path.lower())
    if actual is None or directory.files[actual] != source_size(source):
        return False
    return sha256_of(directory.path / actual) == sha256_of(source)


def _writes(
    directory: BootDirectory, new: Mapping[str, Source], groups: Mapping[str, _Group]
) -> tuple[list[Write], list[str]]:
    """Return what to write, addons first, entries last; and what not to write, and why."""
    placed = {path: to for group in groups.values() for path, to in group.paths.items()}
    done = {path for group in groups.values() if group.there for path in group.paths}
    writes, problems = [], []
    for path in sorted(new, key=lambda path: (path in groups, path not in placed, path)):
        to, source = placed.get(path, path), new[path]
        there = to.lower() in directory.by_lower
        if path in done or (there and to.lower() in ONCE) or (path not in placed and _same(directory, to, source)):
            continue
        if path not in placed and (problem := _other_loader(directory, to, source)):
            problems.append(problem)
            continue
        writes.append(Write(to, source, source_size(source), sha256_of(source)))
    return writes, problems


def _other_loader(directory: BootDirectory, path: str, source: Source) -> str | None:
    """Return why a program that is there stays: it is another's, or newer, or does not say what it is."""
    actual = directory.by_lower.get(path.lower())
    if actual is None or not is_program(path):
        return None
    with mapped(directory.path / actual, MAX_UKI) as data:
        there = Product.of(data)
    with opened(source) as data:
        ours = Product.of(data)
    if there.name != ours.name or not there.name:
        return f"{actual} is {there.name or 'another boot loader'}, and left as it is"
    order, found, new = there.compare(ours)
    if order > 0:
        return f"{actual} is {there.name} {found}, newer than {new}, and left as it is"
    return None


def _leftovers(
    directory: BootDirectory, new: Mapping[str, Source], groups: Mapping[str, _Group]
) -> Iterator[Remove | RemoveDirectory]:
    """Yield the removal of what interrupted runs left: incomplete files, and files that no entry needs.

    Beside a new entry no addon stays that does not belong to it.
    """
    used = {path.lower() for entry in directory.entries for path in entry.files}
    used |= {path.lower() for path in (*new, *(to for group in groups.values() for to in group.paths.values()))}
    programs = {entry_id(path) for path in directory.files if path.rpartition("/")[0].lower() == LINUX.lower()}
    beside = {group.id for group in groups.values() if not group.there}
    emptied: dict[str, None] = {}
    for path in directory.files:
        folder, _, name = path.rpartition("/")
        owner = entry_id(folder[: -len(EXTRA)]) if _is_extra(folder) else None
        orphan = owner is not None and owner not in programs and (owner in beside or _promising(directory, folder))
        if name.startswith(TEMPORARY) or (
            path.lower() not in used and (orphan or (_is_data(path) and _entries_known(directory)))
        ):
            yield Remove(path)
            if _is_extra(folder) or _is_data(path):
                emptied[folder] = None
    yield from map(RemoveDirectory, emptied)


def _is_extra(folder: str) -> bool:
    return folder.lower().startswith(f"{LINUX}/".lower()) and folder.lower().endswith(EXTRA)


def _is_data(path: str) -> bool:
    return path.lower().startswith(f"{FILES}/".lower())


def _promising(directory: BootDirectory, folder: str) -> bool:
    """Say whether files beside a UKI are ours: there is an addon with a promise, or an image's record."""
    return f"{folder}/{RECORD}".lower() in directory.by_lower or any(
        arguments and path.rpartition("/")[0] == folder for path, arguments in directory.promises.items()
    )


def _entries_known(directory: BootDirectory) -> bool:
    """Say whether every type 1 entry could be read, and so which files are needed."""
    return not any(path.lower().startswith(f"{ENTRIES}/") for path in directory.unreadable)


def _removals(directory: BootDirectory, entries: Collection[BootEntry]) -> Iterator[Remove | RemoveDirectory]:
    """Yield the removal of entries: first from the menu, then what no other entry needs."""
    used = {path.lower() for entry in directory.entries if entry not in entries for path in entry.files}
    emptied: dict[str, None] = {}
    for entry in entries:
        yield Remove(entry.path)
        used.add(entry.path.lower())
        for path in entry.files:
            folder = path.rpartition("/")[0]
            if path.lower() not in used and (_is_extra(folder) or (_is_data(path) and _entries_known(directory))):
                used.add(path.lower())
                emptied[folder] = None
                yield Remove(path)
    yield from map(RemoveDirectory, emptied)
