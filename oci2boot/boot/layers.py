"""Which layers of an image are there for its UKIs, and the two trees that come of it: what runs, and what boots it.

A UKI in /boot needs none of this: /boot never counts. A layer that says it is a UKI's, by an annotation, a label of the
image or the user's word, may have it anywhere: the layer is no part of the root file system. One place more is known:
/composefs-meta/boot, hidden from the root file system by a later layer's whiteout.
"""

import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from oci2boot.boot.discover import UKI_DIRECTORY
from oci2boot.boot.names import EXTRA, PROGRAM, is_program
from oci2boot.digest import OciDigest
from oci2boot.errors import FormatError, ImageError
from oci2boot.formats.tar import HARD_LINK, Entry
from oci2boot.tree.files import show

ANNOTATION: Final = "io.oci2boot.uki.v1"
"""On a layer's descriptor; its value is for people."""
LABEL: Final = "io.oci2boot.uki.v1.layers"
"""In the image's config: layers, by diff_id or by number, with commas between."""
HIDDEN: Final = b"composefs-meta"
NAMED: Final = 3
_UNCOUNTED: Final = re.compile(rb"(boot|sysroot|run)(/|$)")
"""What canonical rules empty."""
_STANDARD: Final = re.compile(rb"boot/|usr/lib/modules/[^/]+/[^/]+$")
_COMPANIONS: Final = re.escape(f"{PROGRAM}{EXTRA}".encode())
_IN_ADDONS: Final = re.compile(rb"(?:.*/)?([^/]+" + _COMPANIONS + rb"(?:/[^/]+)?)", re.IGNORECASE)

Mark = Literal["its annotation", "the image's label", "the user's word"]


@dataclass(frozen=True, slots=True)
class Layer:
    """What an image says of a layer."""

    diff_id: OciDigest
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UkiLayers:
    """Layers by number, the lowest being 1."""

    marked: Mapping[int, Mark] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()
    """Of the marked ones, those that are not in the root file system: they reach out of /boot."""
    origins: Mapping[bytes, int] = field(default_factory=dict)
    """The layer that each UKI is from, by its path in the tree that boots."""
    changes: Mapping[int, bytes] = field(default_factory=dict)
    """Of each layer that changes the root file system, the first path."""
    notes: tuple[str, ...] = ()

    def above(self, path: bytes) -> str:
        """Say what of the root file system changed above the layer of a UKI; nothing where nothing did."""
        origin = self.origins.get(path)
        if origin is None:
            return ""
        later = [(number, changed) for number, changed in self.changes.items() if number > origin]
        return f"layer {later[0][0]} changed /{show(later[0][1])} above the UKI's layer {origin}" if later else ""


def mark_layers(layers: Sequence[Layer], labels: Mapping[str, str], chosen: int | None) -> dict[int, Mark]:
    """Return the layers that are said to be for UKIs, by number. `chosen` may count from the top: -1 is the last."""
    count = len(layers)
    marked: dict[int, Mark] = {
        number: "its annotation" for number, layer in enumerate(layers, 1) if ANNOTATION in layer.annotations
    }
    numbers = {str(layer.diff_id): number for number, layer in enumerate(layers, 1)}
    numbers |= {str(number): number for number in range(1, count + 1)}
    for word in filter(None, (part.strip() for part in labels.get(LABEL, "").split(","))):
        if word not in numbers:
            raise FormatError(f"the label {LABEL} names the layer {word[:80]!r}, the image has {count}")
        marked.setdefault(numbers[word], "the image's label")
    if chosen is not None:
        number = chosen + count + 1 if chosen < 0 else chosen
        if not 1 <= number <= count:
            raise ImageError(f"the image has no layer {chosen}", hint=f"it has layers 1 to {count}")
        marked[number] = "the user's word"
    return marked


def study(layers: Sequence[Sequence[Entry]], marked: Mapping[int, Mark]) -> UkiLayers:
    """Say what the layers, lowest first, are to the root file system and to the UKIs."""
    left_out, changes, notes = set(), {}, []
    for number, layer in enumerate(layers, 1):
        outside = [entry.path for entry in layer if entry.path and not _UNCOUNTED.match(entry.path)]
        if outside and number in marked:
            left_out.add(number)
            shown = ", ".join(f"/{show(path)}" for path in outside[:NAMED])
            more = f" and {len(outside) - NAMED} more" if len(outside) > NAMED else ""
            notes.append(
                f"layer {number} is a UKI's by {marked[number]}: {shown}{more} are no part of the root file system "
                "(bootc and composefs-rs would count them)"
            )
        elif outside := [path for path in outside if _beneath_hidden(path) is None]:
            changes[number] = outside[0]
    origins = {
        entry.path: number
        for number, layer in enumerate(boot_layers(layers, marked), 1)
        for entry in layer
        if is_program(entry.path) and stat.S_ISREG(entry.kind)
    }
    return UkiLayers(dict(marked), frozenset(left_out), origins, changes, tuple(notes))


def needs_boot_tree(layers: Sequence[Sequence[Entry]], found: UkiLayers) -> bool:
    """Say whether what boots is not in the tree that runs."""
    return bool(found.left_out) or any(entry.path.startswith(HIDDEN + b"/boot/") for layer in layers for entry in layer)


def boot_layers(layers: Sequence[Sequence[Entry]], marked: Mapping[int, Mark]) -> list[list[Entry]]:
    """Return the layers with the UKIs where they are looked for."""
    return [
        [entry for each in layer for entry in _placed(each, marked=number in marked)]
        for number, layer in enumerate(layers, 1)
    ]


def _placed(entry: Entry, *, marked: bool) -> Iterator[Entry]:
    below = _beneath_hidden(entry.path)
    if below is not None:
        # Also the whiteout that hides them: for what boots they are to stay.
        if below.startswith(b"boot/"):
            link = _beneath_hidden(entry.linkname) if entry.kind == HARD_LINK else None
            yield entry._replace(path=below, linkname=link or entry.linkname)
        return
    yield entry
    if marked and not _STANDARD.match(entry.path) and entry.kind in (stat.S_IFREG, stat.S_IFDIR, HARD_LINK):
        addons = _IN_ADDONS.fullmatch(entry.path)
        name = addons[1] if addons else entry.path.rpartition(b"/")[2]
        if addons or (is_program(name) and entry.kind != stat.S_IFDIR):
            yield entry._replace(path=UKI_DIRECTORY + b"/" + name)


def _beneath_hidden(path: bytes) -> bytes | None:
    """Return the path within /composefs-meta, empty for itself and its whiteouts; None for any other."""
    if path in (HIDDEN, b".wh." + HIDDEN):
        return b""
    below = path.removeprefix(HIDDEN + b"/")
    return None if below == path else below
