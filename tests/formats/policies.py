"""Small policies and paths made at random, the same for the same seed."""

import stat
from dataclasses import dataclass
from random import Random

from oci2boot.formats.file_contexts import regex

KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
NAMES = ("a", "b", "c", "ab", "x", "a.b", "a-")
Files = dict[str, bytes]


@dataclass
class PolicyMaker:
    random: Random
    every_version: bool = True
    """Only such policies as every libselinux from 3.4 on, and composefs-rs, read alike."""

    def word(self, escapes: bool) -> str:
        parts = ["a", "b", "c", "ab", "x", *([r"a\.b", r"a\-"] if escapes else [])]
        return "".join(self.random.choices(parts, k=self.one_or_two()))

    def one_or_two(self) -> int:
        return self.random.choice([1, 1, 1, 2])

    def directories(self, depths: list[int]) -> str:
        # libselinux 3.4 compares an escaped first component with its backslashes.
        words = [self.word(level > 0 or not self.every_version) for level in range(self.random.choice(depths))]
        return "".join("/" + word for word in words)

    def piece(self, depth: int = 0) -> str:
        pick = self.random.choice
        chance = self.random.random()
        if chance < 0.45:
            return pick(["a", "b", "c", "ab", "x", "/", "/a", r"\.", "/b/"])
        if chance < 0.6:
            return pick([".", "[ab]", "[^a]", "[a-c]", "[[:alpha:]]", "[^[:punct:]x]", r"\d", r"\w", r"[\-\].b]"])
        if chance < 0.7 and depth < 3:
            branches = [self.piece(depth + 1) + self.piece(depth + 1) for _ in range(pick([1, 2, 2, 3]))]
            return f"({'|'.join(branches)})"
        if chance < 0.85 and depth < 3:
            return f"(?:{self.piece(depth + 1)})" + pick(["?", "*", "+", "{2}", "{1,2}", "{0,}", "*?", "{0}", "{2,}?"])
        return pick([".*", ".+", ".?", ".*?", "a?", "b+", "(/.*)?", "[^/]*", "[^/]+"])

    def pattern(self) -> str:
        chance = self.random.random()
        if not self.every_version and chance < 0.3:
            return self.directories([0, 1, 2, 3, 4]) or "/"
        if not self.every_version and chance < 0.4:
            middle = "".join(self.piece() for _ in range(3))
            return self.random.choice([middle, f"{self.directories([1, 2])}/x|{middle}", f"/a|{middle}|/b/{middle}"])
        if chance < 0.5:
            return self.directories([1, 1, 2, 3]) + "(/.*)?"
        tail = "".join(self.piece() for _ in range(self.random.choice([1, 1, 2, 3])))
        # The letter keeps a repeat from following a slash: libselinux 3.8 takes that slash for fixed.
        return self.directories([0, 1, 1, 2, 3]) + ("/[a-cx]" if self.every_version else "/") + tail

    def spec(self) -> str:
        pattern = self.pattern()
        kind = self.random.choice(["", "", "", "\t--", "\t-d", "\t-l"])
        # From 3.8 on, <<none>> in a deeper directory beats a later line about one above it.
        unlabelled = self.random.random() < 0.15 and not (self.every_version and regex_has_directory(pattern))
        return f"{pattern}{kind}\t{'<<none>>' if unlabelled else f'c{self.random.randrange(1000)}'}"

    def specs(self, most: int) -> bytes:
        lines = [self.random.choice(["", "  "]) + self.spec() for _ in range(self.random.randint(1, most))]
        return "\n".join(["# comment", *lines, ""]).encode()

    def substitutions(self) -> bytes:
        lines = []
        for _ in range(self.random.randint(1, 3)):
            source, target = ("/" + "/".join(self.random.choices(NAMES[:5], k=self.one_or_two())) for _ in range(2))
            source = self.random.choice([*[source] * 9, "/"])
            lines.append(f"{source} {self.random.choice([target, target, '/'])}\n")
        return "".join(lines).encode()

    def files(self, optional: float = 0.4) -> Files:
        """Return a policy's files by name, each but the first with the chance `optional`."""
        files = {"file_contexts": self.specs(12)}
        for name in ("file_contexts.homedirs", "file_contexts.local"):
            if self.random.random() < optional:
                files[name] = self.specs(4)
        for name in ("file_contexts.subs", "file_contexts.subs_dist"):
            if self.random.random() < optional:
                files[name] = self.substitutions()
        return files

    def path(self) -> bytes:
        return ("/" + "/".join(self.random.choices(NAMES, k=self.random.choice([1, 1, 2, 2, 3, 3, 4, 5])))).encode()

    def lookups(self, count: int) -> list[tuple[bytes, int]]:
        return [(self.path(), self.random.choice(KINDS)) for _ in range(count)]


def regex_has_directory(pattern: str) -> bool:
    return "/" in pattern[1:]


def sample(node: regex.Node, random: Random) -> bytes:
    """Return bytes that a parsed pattern matches."""
    match node:
        case frozenset():
            likely = sorted(node & set(b"abcdefghijklmnopqrstuvwxyz0123456789._-")) or sorted(node - {0, 10})
            return bytes((random.choice(likely),))
        case regex.Concat(parts):
            return b"".join(sample(part, random) for part in parts)
        case regex.Choice(branches):
            return sample(random.choice(branches), random)
        case regex.Repeat(inner, least, most):
            times = random.randint(least, min(least + 3, least + 3 if most is None else most))
            return b"".join(sample(inner, random) for _ in range(times))
