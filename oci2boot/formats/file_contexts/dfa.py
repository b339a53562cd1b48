"""Many regular expressions matched at once, in linear time: a deterministic automaton that is made while it is used.

A state is what one byte string has come to: the literal prefixes that it may still be the beginning of, and the set of
Glushkov positions it may stand at. States and transitions are kept once made, within limits, so that a walk along a
tree costs one dictionary look-up per byte of a name.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Final

from oci2boot.errors import LimitError
from oci2boot.formats.file_contexts.regex import Automaton, ByteSet

MAX_POSITIONS: Final = 200_000
"""Of all patterns together; the policies of Debian and RHEL have about 14,000."""
MAX_LINKS: Final = 1_000_000
"""Of all patterns together."""
MAX_TRANSITIONS: Final = 50_000
"""Kept at a time; a Debian tree needs 6,000."""
MAX_KEPT_POSITIONS: Final = 1_000_000
"""In the kept states' sets."""
MAX_WORK: Final = 20_000_000
"""Pairs of positions tried in making transitions, some seconds; 60,000 inodes under Debian's policy need 600,000."""


class State(dict[int, "State"]):
    """A state of a `Matcher`; as a mapping, the next state for each byte, made when first asked for."""

    __slots__ = ("_matcher", "accepts", "answers", "depth", "entered", "high", "low", "positions")

    def __init__(self, matcher: "Matcher", low: int, high: int, depth: int, positions: frozenset[int]) -> None:
        self._matcher = matcher
        self.low = low
        self.high = high
        """`low:high` are the prefixes, in sorted order, that begin with the `depth` bytes consumed."""
        self.entered = bisect_right(matcher.prefixes, matcher.prefixes[low][:depth], low, high) if low < high else low
        """`low:entered` are those that are consumed whole."""
        self.depth = depth
        self.positions = positions
        self.accepts = matcher.accepted(self)
        """The patterns, by number, that match what was consumed."""
        self.answers: dict[int, bytes | None] = {}
        """A place for the caller to keep what it made of `accepts`."""

    def __missing__(self, byte: int) -> "State":
        return self._matcher.step(self, byte)

    def after(self, text: bytes) -> "State":
        return reduce(getitem, text, self)


class Matcher:
    def __init__(self, automata: Sequence[Automaton]) -> None:
        order = sorted(range(len(automata)), key=lambda number: automata[number].prefix)
        self.prefixes = [automata[number].prefix for number in order]
        self._prefix_owner = order
        self._prefix_nullable = [automata[number].nullable for number in order]
        self._first: list[tuple[int, ...]] = []
        self._sets: list[ByteSet] = []
        self._follow: list[tuple[int, ...]] = []
        self._owner: list[int] = []
        self._last: set[int] = set()
        for number in order:
            self._append(number, automata[number])
        self._states: dict[tuple[int, int, int, frozenset[int]], State] = {}
        self._transitions = 0
        self._kept_positions = 0
        self._work = 0
        self.start = State(self, 0, len(order), 0, frozenset())

    def _append(self, number: int, automaton: Automaton) -> None:
        base = len(self._sets)
        self._first.append(tuple(base + position for position in automaton.first))
        self._sets += automaton.sets
        self._follow += [tuple(base + position for position in links) for links in automaton.follow]
        self._owner += [number] * len(automaton.sets)
        self._last |= {base + position for position in automaton.last}

    def accepted(self, state: State) -> frozenset[int]:
        found = {self._owner[position] for position in state.positions & self._last}
        for index in range(state.low, state.entered):
            if self._prefix_nullable[index]:
                found.add(self._prefix_owner[index])
        return frozenset(found)

    def step(self, state: State, byte: int) -> State:
        """Make the transition, and keep it."""
        sets, follow = self._sets, self._follow
        sources = [follow[position] for position in state.positions]
        sources += self._first[state.low : state.entered]
        self._work += len(sources) + sum(map(len, sources))
        if self._work > MAX_WORK:
            raise CostLimitError(self._busiest(state))
        positions = frozenset(position for links in sources for position in links if byte in sets[position])
        low, high = self._narrow(state, byte)
        depth = state.depth + 1 if low < high else 0
        key = (low, high, depth, positions) if depth else (0, 0, 0, positions)
        reached = self._states.get(key)
        if reached is None:
            self._make_room(len(positions))
            reached = self._states[key] = State(self, *key)
        self._transitions += 1
        state[byte] = reached
        return reached

    def _narrow(self, state: State, byte: int) -> tuple[int, int]:
        """Return the range of the prefixes that go on with `byte`."""
        low, high = state.entered, state.high
        if low == high:
            return 0, 0
        common = self.prefixes[low][: state.depth]
        end = bisect_left(self.prefixes, common + bytes((byte + 1,)), low, high) if byte < 0xFF else high
        return bisect_left(self.prefixes, common + bytes((byte,)), low, end), end

    def _make_room(self, size: int) -> None:
        self._kept_positions += size
        if self._transitions >= MAX_TRANSITIONS or self._kept_positions > MAX_KEPT_POSITIONS:
            # States still in a caller's hands stay right: they fill again when used.
            for state in self._states.values():
                state.clear()
            self._states.clear()
            self.start.clear()
            self._transitions = 0
            self._kept_positions = size

    def _busiest(self, state: State) -> int:
        counts = Counter(self._owner[position] for position in state.positions)
        return counts.most_common(1)[0][0] if counts else self._prefix_owner[state.low]


class CostLimitError(LimitError):
    """Raised when the patterns make new states without end; `pattern` is the one that has most part in it."""

    def __init__(self, pattern: int) -> None:
        super().__init__("the regular expressions are too costly to match")
        self.pattern = pattern
