"""A policy's answer to: which label has this path?

libselinux 3.9, src/label_file.c; composefs-boot 0.9, src/selabel.rs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Final, Self

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.file_contexts.dfa import MAX_LINKS, MAX_POSITIONS, CostLimitError, Matcher, State
from oci2boot.formats.file_contexts.regex import Automaton, compile_pattern, literal_pattern
from oci2boot.formats.file_contexts.specs import ANY_KIND, Rules, Spec, parse_specs, parse_substitutions
from oci2boot.formats.file_contexts.substitutions import Simultaneous, Substitutions, Successive

SPEC_FILES: Final[Mapping[Rules, Sequence[str]]] = {
    "libselinux": ("file_contexts", "file_contexts.homedirs", "file_contexts.local"),
    "composefs-rs": ("file_contexts", "file_contexts.local", "file_contexts.homedirs"),
}
"""In rising order of precedence; the first is mandatory."""
SUBSTITUTION_FILES: Final = ("file_contexts.subs", "file_contexts.subs_dist")
FILES: Final = (*SPEC_FILES["libselinux"], *SUBSTITUTION_FILES)

NEWLINE: Final = 0x0A
NODE_DEPTH: Final = 3
"""Fixed path components by which libselinux sorts its specifications: SPEC_NODE_MAX_DEPTH of label_file.h."""

_META: Final = rb".^$?*+|\[({\])}"
_LITERAL: Final = re.compile(rb"(?:[^" + _META + rb"\\]|\\[" + _META + rb"_,-])*")

Literals = Mapping[bytes, Sequence[Spec]]
"""Specifications without metacharacters, by the path that each is for, the stronger one first."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory on the way down a tree."""

    path: bytes
    """With a slash at the end; what names are put behind to find the places of substitution."""
    key: bytes
    """With a slash at the end; what names are put behind to look them up."""
    state: State
    """Of the automaton, after `key`."""


class Policy:
    """The specifications of one policy, made ready to be matched while a tree is walked."""

    def __init__(self, rules: Rules, specs: Sequence[Spec], literals: Literals, substitutions: Substitutions) -> None:
        """Take `specs` in rising order of precedence."""
        self._specs = specs
        self._literals = literals
        self._substitutions = substitutions
        self._places = substitutions.places
        self._newline = rules == "libselinux"
        self._depth = [0] * len(specs)
        self._gate: dict[int, int] = {}
        self._blame = list(range(len(specs)))
        self._matcher = Matcher(self._automata(rules))
        self.root = Place(b"/", b"/", self._matcher.start.after(b"/"))

    @classmethod
    def parse(cls, files: Mapping[str, bytes], directory: str, rules: Rules) -> Self:
        """Read a policy's files by name (`FILES`); `directory` is where they are, for error messages."""
        specs: list[Spec] = []
        literals: dict[bytes, list[Spec]] = {}
        for name in SPEC_FILES[rules]:
            own: dict[bytes, list[Spec]] = {}
            for spec in parse_specs(files.get(name, b""), f"{directory}/{name}", rules):
                path = literal_path(spec.pattern) if rules == "libselinux" else None
                if path is None:
                    specs.append(spec)
                else:
                    own.setdefault(path, []).append(spec)
            for path, found in own.items():  # a later file's first, but within one file in order
                literals[path] = found + literals.get(path, [])
        local, distribution = (
            parse_substitutions(files.get(name, b""), f"{directory}/{name}", rules) for name in SUBSTITUTION_FILES
        )
        substitutions = Simultaneous if rules == "libselinux" else Successive
        return cls(rules, specs, literals, substitutions.of(local, distribution))

    def _automata(self, rules: Rules) -> Sequence[Automaton]:
        automata: list[Automaton] = []
        positions = links = 0
        for spec in self._specs:
            try:
                automaton = compile_pattern(spec.pattern, grouped=rules == "composefs-rs")
            except (FormatError, LimitError) as error:
                raise type(error)(f"{spec}: {error.message}", error.hint) from None
            automata.append(automaton)
            positions += len(automaton.sets)
            links += sum(map(len, automaton.follow))
            if positions > MAX_POSITIONS or links > MAX_LINKS:
                raise LimitError(f"{spec}: the regular expressions down to here are too large together")
        return automata + self._gates(automata) if rules == "libselinux" else automata

    def _gates(self, automata: Sequence[Automaton]) -> list[Automaton]:
        """Give each specification its place in libselinux's tree, by fixed leading components of its path.

        A look-up sees only what hangs in the directories that it passes. Where the regular expression does not imply
        that, as `/a/b/?` does not for `/a/b`, another automaton watches for the directory, the specification's gate.
        """
        gates: list[Automaton] = []
        numbers: dict[tuple[bytes, ...], int] = {}
        for number, spec in enumerate(self._specs):
            node = fixed_components(spec.pattern)
            self._depth[number] = len(node)
            if node == _directories(automata[number].prefix)[: len(node)]:
                continue
            if node not in numbers:
                numbers[node] = len(automata) + len(gates)
                pattern = b"".join(b"/+" + literal_pattern(name) for name in node) + b"/.*"
                gates.append(compile_pattern(pattern, grouped=True))
                self._blame.append(number)
            self._gate[number] = numbers[node]
        return gates

    def label(self, path: bytes, kind: int) -> bytes | None:
        """Return the context for an absolute path, without a NUL; None where there must be none.

        `kind` is an S_IFMT value. What a tree holds is labelled faster by way of `root`, `enter` and `labels`.
        """
        names = [name for name in path.split(b"/") if name]
        if not names:
            return self._find(self._substitutions.apply(b"/") if b"/" in self._places else b"/", kind)
        place = self.root
        for name in names[:-1]:
            place = self.enter(place, name)
        return self.labels(place, [(names[-1], kind)])[0]

    def enter(self, place: Place, name: bytes) -> Place:
        """Go down from `place` into its directory `name`."""
        path = place.path + name
        try:
            if path in self._places:
                path, key = self._substitutions.enter(path)
                return Place(path, key, self._matcher.start.after(key))
            return Place(path + b"/", place.key + name + b"/", place.state.after(name + b"/"))
        except CostLimitError as error:
            raise self._too_costly(error) from None

    def labels(self, place: Place, entries: Iterable[tuple[bytes, int]]) -> list[bytes | None]:
        """Return the contexts of a directory's entries, each given by name and S_IFMT value."""
        path, key, state = place.path, place.key, place.state
        literals, places = self._literals, self._places
        labels = []
        try:
            for name, kind in entries:
                if (places and path + name in places) or key + name in literals or name[-1] == NEWLINE:
                    whole = path + name
                    labels.append(self._find(self._substitutions.apply(whole) if whole in places else key + name, kind))
                    continue
                reached = reduce(getitem, name, state)
                try:
                    labels.append(reached.answers[kind])
                except KeyError:
                    answer = reached.answers[kind] = self._strongest(reached.accepts, kind)
                    labels.append(answer)
        except CostLimitError as error:
            raise self._too_costly(error) from None
        return labels

    def _find(self, key: bytes, kind: int) -> bytes | None:
        for spec in self._literals.get(key, ()):
            if spec.kind in (ANY_KIND, kind):
                return spec.context
        state = self._matcher.start.after(key[:-1])
        accepts = state.accepts if self._newline and key[-1] == NEWLINE else frozenset[int]()
        return self._strongest(accepts | state.after(key[-1:]).accepts, kind)

    def _strongest(self, matching: Set[int], kind: int) -> bytes | None:
        """Choose the last match of the deepest node that has one, unless a node above has a later one.

        So libselinux does it; without nodes, as in composefs-rs, it is the last match.
        """
        strongest: list[int | None] = [None] * (NODE_DEPTH + 1)
        for number in sorted(matching):
            if number >= len(self._specs) or self._specs[number].kind not in (ANY_KIND, kind):
                continue
            if self._gate.get(number, number) in matching:
                strongest[self._depth[number]] = number
        chosen: int | None = None
        for candidate in reversed(strongest):
            if candidate is None or (chosen is not None and candidate < chosen):
                continue
            if self._specs[candidate].context is None:
                return None
            chosen = candidate
        return None if chosen is None else self._specs[chosen].context

    def _too_costly(self, error: CostLimitError) -> LimitError:
        return LimitError(f"{self._specs[self._blame[error.pattern]]}: {error.message}")


def literal_path(pattern: bytes) -> bytes | None:
    """Return the one path that a regular expression without metacharacters is for; None for any other."""
    return re.sub(rb"\\(.)", rb"\1", pattern) if _LITERAL.fullmatch(pattern) else None


def fixed_components(pattern: bytes) -> tuple[bytes, ...]:
    """Return the leading directories that libselinux takes for fixed; it does not look at the first byte."""
    components: list[bytes] = []
    at = 0
    while len(components) < NODE_DEPTH and (slash := pattern.find(b"/", at + 1)) != -1:
        component = pattern[at + 1 : slash]
        at = slash
        if component:
            name = literal_path(component)
            if name is None:
                break
            components.append(name)
    return tuple(components)


def _directories(path: bytes) -> tuple[bytes, ...]:
    return tuple(name for name in path.split(b"/")[:-1] if name) if path.startswith(b"/") else ()
