"""Regular expressions of file_contexts as Glushkov automata, which match in linear time.

The dialect is what PCRE2 (libselinux) and Rust's regex (composefs-rs) read alike: literals, escaped punctuation, `.`,
classes with POSIX names, `\\d` `\\w` `\\s`, groups, `|`, and `?` `*` `+` `{n}` `{n,}` `{n,m}` with their lazy forms.
Every pattern of the policies that distributions ship is in it. Whatever is not raises FormatError.
Each byte of the pattern is one position, and there are no other states: V. M. Glushkov, "The abstract theory of
automata", 1961.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.errors import FormatError, LimitError

MAX_PATTERN: Final = 4095
"""libselinux 3.9 compiles no longer one."""
MAX_NESTING: Final = 40
"""Groups inside groups; real policies have three."""
MAX_POSITIONS: Final = 10_000
"""Of one pattern, counted repeats written out."""
MAX_LINKS: Final = 200_000
"""Of one pattern: pairs of positions that can follow each other, quadratic in patterns such as `(a?){400}`."""

ByteSet = frozenset[int]
ANY: Final[ByteSet] = frozenset(range(256))
SINGLE: Final = tuple(frozenset({byte}) for byte in range(256))

_LOWER: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz")
_UPPER: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGIT: Final = frozenset(b"0123456789")
_GRAPH: Final = frozenset(range(0x21, 0x7F))
_ALNUM: Final = _LOWER | _UPPER | _DIGIT
_SPACE: Final = frozenset(b" \t\n\v\f\r")
_POSIX: Final = {
    b"alnum": _ALNUM,
    b"alpha": _LOWER | _UPPER,
    b"ascii": frozenset(range(128)),
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset((*range(0x20), 0x7F)),
    b"digit": _DIGIT,
    b"graph": _GRAPH,
    b"lower": _LOWER,
    b"print": _GRAPH | frozenset(b" "),
    b"punct": _GRAPH - _ALNUM,
    b"space": _SPACE,
    b"upper": _UPPER,
    b"word": _ALNUM | frozenset(b"_"),
    b"xdigit": _DIGIT | frozenset(b"abcdefABCDEF"),
}
_SHORTHAND: Final = {
    ord(letter): members
    for low, members in (("d", _DIGIT), ("s", _SPACE), ("w", _POSIX[b"word"]))
    for letter, members in ((low, members), (low.upper(), ANY - members))
}
_ESCAPABLE: Final = (_GRAPH - _ALNUM) - frozenset(b"<>")
"""`\\<` and `\\>` are word boundaries in Rust's regex and literals in PCRE2."""

_POSIX_NAME: Final = re.compile(rb"\[:(\^?)([a-z]+):\]")
_POSIX_LOOKALIKE: Final = re.compile(rb"\[([:.=])[^\]]*\1\]")
_COUNT: Final = re.compile(rb"\{(\d{1,5})(?:(,)(\d{1,5})?)?\}")


@dataclass(frozen=True, slots=True)
class Repeat:
    inner: "Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Concat:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    branches: tuple["Node", ...]


Node = ByteSet | Repeat | Concat | Choice
ANYTHING: Final = Repeat(ANY, 0, None)
EMPTY: Final = Concat(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Automaton:
    prefix: bytes
    """The literal bytes that every match begins with; the positions describe what comes after them."""
    sets: Sequence[ByteSet]
    """The bytes that each position takes."""
    first: Sequence[int]
    follow: Sequence[Sequence[int]]
    last: frozenset[int]
    nullable: bool
    """Whether `prefix` alone is a match."""


def compile_pattern(pattern: bytes, *, grouped: bool) -> Automaton:
    """Return the automaton of the whole-subject match of `pattern`.

    `grouped` says that the anchors are put around the whole pattern, `^(a|b)$`, and not around its text, `^a|b$`:
    then only the first branch is tied to the start and only the last one to the end.
    """
    node = parse_pattern(pattern)
    if isinstance(node, Choice) and not grouped:
        final = len(node.branches) - 1
        node = Choice(
            tuple(
                Concat(((ANYTHING,) if i > 0 else ()) + (branch,) + ((ANYTHING,) if i < final else ()))
                for i, branch in enumerate(node.branches)
            )
        )
    prefix, rest = _split_prefix(node)
    builder = _Builder()
    first, last, nullable = builder.build(rest)
    follow = [tuple(dict.fromkeys(links)) for links in builder.follow]
    return Automaton(
        prefix=prefix, sets=builder.sets, first=first, follow=follow, last=frozenset(last), nullable=nullable
    )


def parse_pattern(pattern: bytes) -> Node:
    if len(pattern) > MAX_PATTERN:
        raise LimitError(f"the regular expression has {len(pattern)} bytes, {MAX_PATTERN} are read")
    return _Parser(pattern).parse()


def literal_pattern(text: bytes) -> bytes:
    """Return the pattern that matches `text` alone."""
    return b"".join(b"\\%c" % byte if byte in _ESCAPABLE else b"%c" % byte for byte in text)


def _split_prefix(node: Node) -> tuple[bytes, Node]:
    if not isinstance(node, Concat):
        return b"", node
    prefix = bytearray()
    for part in node.parts:
        if not (isinstance(part, frozenset) and len(part) == 1):
            break
        prefix += bytes(part)
    return bytes(prefix), Concat(node.parts[len(prefix) :])


class _Parser:
    def __init__(self, pattern: bytes) -> None:
        self.pattern = pattern
        self.at = 0

    def parse(self) -> Node:
        node = self.choice(0)
        if self.at < len(self.pattern):
            raise self.error("an unmatched )")
        return node

    def error(self, what: str) -> FormatError:
        shown = self.pattern[:100].decode("ascii", "backslashreplace")
        return FormatError(
            f"the regular expression {shown!r} has {what} at byte {self.at}",
            hint="file_contexts are read in the dialect that PCRE2 and Rust share, without anchors and lookaround",
        )

    def peek(self) -> int | None:
        return self.pattern[self.at] if self.at < len(self.pattern) else None

    def choice(self, depth: int) -> Node:
        branches = [self.concat(depth)]
        while self.peek() == ord("|"):
            self.at += 1
            branches.append(self.concat(depth))
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def concat(self, depth: int) -> Concat:
        parts: list[Node] = []
        while (byte := self.peek()) is not None and byte not in b"|)":
            part = self.repeat(self.atom(depth))
            if part != EMPTY:
                parts.append(part)
        return Concat(tuple(parts))

    def repeat(self, inner: Node) -> Node:
        byte = self.peek()
        if byte is None or byte not in b"?*+{":
            return inner
        if byte == ord("{"):
            least, most = self.count()
        else:
            least = 1 if byte == ord("+") else 0
            most = 1 if byte == ord("?") else None
            self.at += 1
        if self.peek() == ord("?"):  # lazy: the same language
            self.at += 1
        if (after := self.peek()) is not None and after in b"?*+{":
            raise self.error("a repeat of a repeat")
        return EMPTY if most == 0 or inner == EMPTY else Repeat(inner, least, most)

    def count(self) -> tuple[int, int | None]:
        match = _COUNT.match(self.pattern, self.at)
        if match is None:
            raise self.error("an unusual {")
        least = int(match[1])
        most = least if match[2] is None else int(match[3]) if match[3] else None
        if least > 0xFFFF or (most is not None and not least <= most <= 0xFFFF):
            raise self.error("an impossible count")
        self.at = match.end()
        return least, most

    def atom(self, depth: int) -> Node:
        byte = self.pattern[self.at]
        match byte:
            case 0x28:  # (
                return self.group(depth)
            case 0x5B:  # [
                return self.byte_class()
            case 0x5C:  # backslash
                return self.escape()
            case 0x2E:  # .
                self.at += 1
                return ANY
        if byte in b"^$?*+{":
            raise self.error(f"an unescaped {byte:c}")
        self.at += 1
        return SINGLE[byte]

    def group(self, depth: int) -> Node:
        if depth == MAX_NESTING:
            raise self.error(f"more than {MAX_NESTING} groups inside each other")
        self.at += 1
        if self.peek() == ord("?"):
            if not self.pattern.startswith(b"?:", self.at):
                raise self.error("a special group")
            self.at += 2
        node = self.choice(depth + 1)
        if self.peek() != ord(")"):
            raise self.error("a missing )")
        self.at += 1
        # Empty branches say one thing however many they are; without them, work is bounded by positions.
        return _without_repeated_empties(node) if isinstance(node, Choice) else node

    def escape(self) -> ByteSet:
        escaped = self.pattern[self.at + 1] if self.at + 1 < len(self.pattern) else 0
        if escaped in _ESCAPABLE:
            found = SINGLE[escaped]
        elif escaped in _SHORTHAND:
            found = _SHORTHAND[escaped]
        else:
            raise self.error("an unknown escape")
        self.at += 2
        return found

    def byte_class(self) -> ByteSet:
        if _POSIX_LOOKALIKE.match(self.pattern, self.at):
            raise self.error("a POSIX name outside of a class")
        self.at += 1
        negated = self.peek() == ord("^")
        self.at += negated
        start = self.at
        members: set[int] = set()
        while (byte := self.peek()) != ord("]") or self.at == start:
            if byte is None:
                raise self.error("a missing ]")
            item = self.class_item(start)
            if self.peek() == ord("-") and self.pattern[self.at + 1 : self.at + 2] not in (b"]", b""):
                self.at += 1
                item = self.byte_range(item, self.class_item(start))
            members |= item
        self.at += 1
        return ANY - members if negated else frozenset(members)

    def byte_range(self, low: ByteSet, high: ByteSet) -> ByteSet:
        if len(low) != 1 or len(high) != 1 or min(low) > min(high):
            raise self.error("an impossible range")
        return frozenset(range(min(low), min(high) + 1))

    def class_item(self, start: int) -> ByteSet:
        byte = self.pattern[self.at]
        if byte == ord("\\"):
            return self.escape()
        if byte == ord("["):
            match = _POSIX_NAME.match(self.pattern, self.at)
            if match is None or match[2] not in _POSIX:
                raise self.error("an unescaped [ inside a class")
            self.at = match.end()
            return ANY - _POSIX[match[2]] if match[1] else _POSIX[match[2]]
        if self.pattern[self.at : self.at + 2] in (b"&&", b"~~", b"--"):
            raise self.error("what Rust takes for a set operation")
        if byte == ord("-") and self.at != start and self.pattern[self.at + 1 : self.at + 2] != b"]":
            raise self.error("an ambiguous -")
        self.at += 1
        return SINGLE[byte]


def _without_repeated_empties(node: Choice) -> Node:
    branches = tuple(branch for branch in node.branches if branch != EMPTY)
    if not branches:
        return EMPTY
    return node if len(branches) == len(node.branches) else Choice((*branches, EMPTY))


_Ends = tuple[list[int], list[int], bool]
"""The positions that a match can begin with and end with, and whether it can be empty."""


class _Builder:
    def __init__(self) -> None:
        self.sets: list[ByteSet] = []
        self.follow: list[list[int]] = []
        self.links = 0

    def build(self, node: Node) -> _Ends:
        match node:
            case frozenset():
                return self.position(node)
            case Concat(parts):
                return self.concat(parts)
            case Choice(branches):
                return self.choice(branches)
            case Repeat(inner, least, most):
                return self.repeat(inner, least, most)

    def position(self, members: ByteSet) -> _Ends:
        if len(self.sets) == MAX_POSITIONS:
            raise LimitError(f"the regular expression has more than {MAX_POSITIONS} positions")
        self.sets.append(members)
        self.follow.append([])
        return [len(self.sets) - 1], [len(self.sets) - 1], False

    def link(self, before: list[int], after: list[int]) -> None:
        self.links += len(before) * len(after)
        if self.links > MAX_LINKS:
            raise LimitError(f"the regular expression has more than {MAX_LINKS} transitions")
        for position in before:
            self.follow[position] += after

    def concat(self, parts: tuple[Node, ...]) -> _Ends:
        first: list[int] = []
        last: list[int] = []
        nullable = True
        for part in parts:
            part_first, part_last, part_nullable = self.build(part)
            self.link(last, part_first)
            first = first + part_first if nullable else first
            last = last + part_last if part_nullable else part_last
            nullable = nullable and part_nullable
        return first, last, nullable

    def choice(self, branches: tuple[Node, ...]) -> _Ends:
        ends = [self.build(branch) for branch in branches]
        first = [position for branch in ends for position in branch[0]]
        last = [position for branch in ends for position in branch[1]]
        return first, last, any(branch[2] for branch in ends)

    def repeat(self, inner: Node, least: int, most: int | None) -> _Ends:
        """Chain copies of `inner`; from the `least`th on, a match may end after each."""
        copies = max(least, 1) if most is None else most
        first, copy_last, nullable = self.build(inner)
        if nullable:
            least = 0
        copy_first = first
        last = list(copy_last) if least <= 1 else []
        for copy in range(2, copies + 1):
            previous = copy_last
            copy_first, copy_last, _ = self.build(inner)
            self.link(previous, copy_first)
            if copy >= least:
                last += copy_last
        if most is None:
            self.link(copy_last, copy_first)
        return first, last, least == 0
