"""file_contexts: which label a path gets.

The answers come from the C library: this machine's libselinux.so.1 where every version agrees, and otherwise what
libselinux 3.11 (git 64c49eb3, PCRE2 10.42) said through selabel_lookup_raw(3).
"""

import gc
import json
import os
import stat
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats.file_contexts import dfa
from oci2boot.formats.file_contexts.policy import FILES, Policy
from oci2boot.formats.file_contexts.regex import compile_pattern, parse_pattern
from oci2boot.formats.file_contexts.specs import Rules, parse_policy_type, parse_specs, parse_substitutions
from tests.debian_policy import debian_policy
from tests.formats.libselinux import selabel
from tests.formats.policies import KINDS, Files, PolicyMaker, sample
from tests.witness import VECTORS

REG, DIR, LNK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
CASES = json.loads((VECTORS / "file_contexts.json").read_text())["cases"]


def parse(files: Files) -> Policy:
    return Policy.parse(files, "/files", "libselinux")


def policy(text: bytes, **others: bytes) -> Policy:
    return parse({"file_contexts": text} | {f"file_contexts.{suffix}": data for suffix, data in others.items()})


RULES: dict[str, tuple[dict[str, bytes], bytes, int, bytes | None]] = {
    "a literal beats a later regex": ({"": b"/a/b L\n/a/.* R\n"}, b"/a/b", REG, b"L"),
    "a literal of another kind does not count": ({"": b"/a/.* R\n/a/b -d L\n"}, b"/a/b", REG, b"R"),
    "a literal beats a regex of .local": ({"": b"/a/b L\n", "local": b"/a/.* R\n"}, b"/a/b", REG, b"L"),
    "of equal literals the first": ({"": b"/a ONE\n/a TWO\n"}, b"/a", REG, b"ONE"),
    "of equal literals the first that fits": ({"": b"/a -d ONE\n/a TWO\n/a -- THREE\n"}, b"/a", REG, b"TWO"),
    "of equal literals the later file's": (
        {"": b"/a -- BASE\n", "homedirs": b"/a HOME\n", "local": b"/a LOCAL\n"},
        b"/a",
        REG,
        b"LOCAL",
    ),
    ".homedirs comes after the base": ({"": b"/a.* BASE\n", "homedirs": b"/a.* HOME\n"}, b"/a", REG, b"HOME"),
    ".local comes last": ({"local": b"/a.* L\n", "": b"/a.* B\n", "homedirs": b"/a.* H\n"}, b"/a", REG, b"L"),
    "<<none>> is no label": ({"": b"/a.* A\n/ab.* <<none>>\n"}, b"/abc", REG, None),
    "<<none>> deeper ends the search": ({"": b"/a/b/c.* <<none>>\n/a.* A\n"}, b"/a/b/cd", REG, None),
    "<<none>> further up counts if later": ({"": b"/a/b/c.* C\n/a.* <<none>>\n"}, b"/a/b/cd", REG, None),
    "a starred slash is fixed": ({"": b"/run/lock/subsys/*.ftpd F\n"}, b"/run/lock/subsysXftpd", REG, None),
    "an optional slash is fixed": ({"": b"/a/b/? F\n"}, b"/a/b", REG, None),
    "an optional directory is fixed": ({"": b"(/usr/lib)?/x F\n"}, b"/x", REG, None),
    "an optional directory matches": ({"": b"(/usr/lib)?/x F\n"}, b"/usr/lib/x", REG, b"F"),
    "a|b starts with a": ({"": b"/a|b F\n"}, b"/ax/y", REG, b"F"),
    "a|b ends with b": ({"": b"/a|b F\n"}, b"/x/y/b", REG, b"F"),
    "a|b does not end with a": ({"": b"/a|b F\n"}, b"/x/a", REG, None),
    "$ matches before a final newline": ({"": b"/a.?c F\n"}, b"/abc\n", REG, b"F"),
    "$ matches before one newline only": ({"": b"/a.?c F\n"}, b"/abc\n\n", REG, None),
    "a dot matches a newline": ({"": b"/a.c F\n"}, b"/a\nc", REG, b"F"),
    "a dot matches a byte above 127": ({"": b"/a.c F\n"}, b"/a\xffc", REG, b"F"),
    "a fourth field is ignored": ({"": b"/a.c -- F more\n"}, b"/abc", REG, b"F"),
    "of two fields the second is the context": ({"": b"/a.c --\n"}, b"/abc", REG, b"--"),
    "a literal's escapes are undone": ({"": b"/a\\.b\\-c\\_d\\,e L\n/.* R\n"}, b"/a.b-c_d,e", REG, b"L"),
    "another escape makes a regex": ({"": b"/a\\@b L\n/.* R\n"}, b"/a@b", REG, b"R"),
    "a kind is a kind": ({"": b"/a.* -l F\n"}, b"/ab", LNK, b"F"),
    "a kind is no other": ({"": b"/a.* -l F\n"}, b"/ab", DIR, None),
    "a lazy count matches": ({"": b"/(ab){2,3}? F\n"}, b"/ababab", REG, b"F"),
    "a lazy count has an end": ({"": b"/(ab){2,3}? F\n"}, b"/abababab", REG, None),
    "classes have POSIX names": ({"": b"/[[:digit:][:upper:]_]+ F\n"}, b"/A0_", REG, b"F"),
    "slashes are tidied": ({"": b"/a/b[c] F\n"}, b"//a///bc/", REG, b"F"),
    "no match, no label": ({"": b"/a/b[c] F\n"}, b"/zz", REG, None),
    "a substitution covers what is below": ({"": b"/b.* B\n", "subs": b"/a /b\n"}, b"/a/x", REG, b"B"),
    "a substitution covers its source": ({"": b"/b.* B\n", "subs": b"/a /b\n"}, b"/a", DIR, b"B"),
    "a substitution ends at a slash": ({"": b"/b.* B\n", "subs": b"/a /b\n"}, b"/ax", DIR, None),
    ".subs_dist comes on top of .subs": (
        {"": b"/c.* C\n/b.* B\n", "subs": b"/a /b\n", "subs_dist": b"/b /c\n"},
        b"/a/x",
        REG,
        b"C",
    ),
    "the last substitution wins": ({"": b"/c.* C\n/b.* B\n", "subs": b"/a /b\n/a /c\n"}, b"/a/x", REG, b"C"),
    "not the longest": ({"": b"/c.* C\n/b.* B\n", "subs": b"/a/x /c\n/a /b\n"}, b"/a/x/y", REG, b"B"),
    "a substitution by / takes no second slash": ({"": b"/x.* X\n", "subs": b"/a /\n"}, b"/a/xy", REG, b"X"),
    "no file substitutes twice": ({"": b"/b.* B\n/a.* A\n", "subs": b"/a /b\n/b /a\n"}, b"/a/x", REG, b"B"),
}
"""Files by suffix, path, kind, and the label of libselinux 3.11."""


@pytest.mark.parametrize(("files", "path", "kind", "wanted"), RULES.values(), ids=RULES)
def test_labels_follow_libselinux(files: dict[str, bytes], path: bytes, kind: int, wanted: bytes | None) -> None:
    """P.4, rule by rule."""
    named = {f"file_contexts.{suffix}".rstrip("."): data for suffix, data in files.items()}
    assert parse(named).label(path, kind) == wanted


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_made_up_policies_give_the_labels_of_libselinux_3_11(case: dict[str, Any]) -> None:
    """P.4, where old versions differ."""
    made = parse({name: text.encode() for name, text in case["files"].items()})
    for path, kind, wanted in case["labels"]:
        found = made.label(path.encode(), int(kind, 8))
        assert (found and found.decode()) == wanted, path


@pytest.mark.parametrize("seed", range(0, 400, 10))
def test_made_up_policies_agree_with_the_c_library(seed: int, tmp_path: Path) -> None:
    """P.4, on policies that all versions from 3.4 on read alike."""
    for one in range(seed, seed + 10):
        maker = PolicyMaker(Random(one))
        files = maker.files(optional=0)
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        ours = parse(files)
        lookups = maker.lookups(30)
        with selabel(tmp_path / "file_contexts") as theirs:
            wanted = [theirs.label(path, kind) for path, kind in lookups]
        assert [ours.label(path, kind) for path, kind in lookups] == wanted, files


def debian_paths(specs: bytes, random: Random) -> list[bytes]:
    """Make a path of every specification, and take some of this machine's."""
    made = []
    for spec in parse_specs(specs, "file_contexts", "libselinux"):
        path = b"/" + sample(parse_pattern(spec.pattern), random).strip(b"/")
        made.append(path if b"//" not in path else b"/" + path.replace(b"/", b""))
    real = [at + b"/" + name for at, _, names in os.walk(b"/etc") for name in names]
    return random.sample(made, 1500) + real[:500]


def test_debians_policy_gives_the_labels_of_the_c_library() -> None:
    """P.4, on a real policy: without exceptions on these paths, though the library may be as old as 3.4."""
    directory = debian_policy()
    files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()}
    assert {"file_contexts", "file_contexts.homedirs", "file_contexts.subs_dist"} <= files.keys()
    ours = parse(files)
    random = Random(1)
    lookups = [(path, random.choice(KINDS)) for path in debian_paths(files["file_contexts"], random)]
    with selabel(directory / "file_contexts") as theirs:
        wanted = [theirs.label(path, kind) for path, kind in lookups]
    wrong = [
        (lookup, label)
        for lookup, label in zip(lookups, wanted, strict=True)
        if ours.label(*lookup) != label
        and lookup[0] != b"/root/.k5login"  # twice, in base and homedirs: 3.8 changed it
    ]
    assert wrong == []
    assert len({label for label in wanted if label}) > 300


OUTSIDE = [
    (rb"/a\b", "an unknown escape at byte 2"),
    (rb"/a\<", "an unknown escape"),
    (b"/a\\", "an unknown escape"),
    (rb"/(a)\1", "an unknown escape"),
    (rb"/^a", "an unescaped ^"),
    (rb"/a$", "an unescaped $"),
    (rb"/(?=a)b", "a special group"),
    (rb"/(?i:a)", "a special group"),
    (rb"/a++", "a repeat of a repeat"),
    (rb"/a**", "a repeat of a repeat"),
    (rb"/(*UTF)a", "an unescaped *"),
    (rb"/a{,3}", "an unusual {"),
    (rb"/a{b", "an unusual {"),
    (rb"/a{3,2}", "an impossible count"),
    (rb"/a{70000}", "an impossible count"),
    (rb"/(a", "a missing )"),
    (rb"/a)", "an unmatched )"),
    (rb"/[a", "a missing ]"),
    (rb"/[]", "a missing ]"),
    (rb"/[:alpha:]", "a POSIX name outside of a class"),
    (rb"/[[:nope:]]", "an unescaped [ inside a class"),
    (rb"/[a[b]]", "an unescaped [ inside a class"),
    (rb"/[a&&b]", "what Rust takes for a set operation"),
    (rb"/[z-a]", "an impossible range"),
    (rb"/[\d-z]", "an impossible range"),
    (rb"/[a-c-e]", "an ambiguous -"),
    (rb"/" + b"(" * 41 + b"a" + b")" * 41, "more than 40 groups"),
]


@pytest.mark.parametrize(("pattern", "why"), OUTSIDE)
def test_a_regex_outside_the_common_dialect_is_refused_with_file_and_line(pattern: bytes, why: str) -> None:
    with pytest.raises(FormatError) as caught:
        policy(b"# one\n/fine.* X\n" + pattern + b" X\n")
    assert caught.value.message.startswith("/files/file_contexts, line 3: ")
    assert why in caught.value.message


HOSTILE = {
    "nested stars": (rb"/x/(a+)+b", b"x/" + b"a" * 200, None),
    "quadratic": (rb"/(a?){400}b", b"a" * 250, None),
    "nested counts": (rb"/((a{1000}){1000}){1000}", b"a", "positions"),
    "deep counts": (rb"/" + b"(" * 30 + b"a" + b"{65535})" * 30, b"a", "positions"),
    "counted empties": (rb"/(b" + b"()" * 1300 + b"){9999}", b"b", None),
    "quadratic links": (rb"/" + (b"(" + b"|".join([b"a"] * 700) + b")") * 2, b"a", "transitions"),
    "long": (rb"/" + b"a" * 5000 + b".", b"a", "4095 are read"),
}


@pytest.mark.parametrize(("pattern", "name", "refused"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_regex_is_matched_or_refused_at_once(pattern: bytes, name: bytes, refused: str | None) -> None:
    if refused is None:
        compile_pattern(pattern, grouped=True)
        assert policy(pattern + b" X\n").label(b"/" + name, REG) in (None, b"X")
    else:
        with pytest.raises(LimitError, match=refused):
            policy(pattern + b" X\n")


def test_states_without_end_are_bounded_and_the_costly_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dfa, "MAX_WORK", dfa.MAX_WORK // 10)
    random = Random(1)
    names = [(bytes(random.choices(b"abcdefgh", k=200)), REG) for _ in range(20_000)]
    made = policy(b"/ok(/.*)? OK\n/(" + b"|".join(b".*%c.{150}" % letter for letter in b"abcdefgh") + b")* X\n")
    with pytest.raises(LimitError) as caught:
        made.labels(made.root, names)
    assert caught.value.message == "/files/file_contexts, line 2: the regular expressions are too costly to match"


def count_states() -> int:
    gc.collect()  # other tests leave garbage
    return sum(isinstance(kept, dfa.State) for kept in gc.get_objects())


def test_states_are_dropped_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dfa, "MAX_TRANSITIONS", 1000)
    random = Random(2)
    names = [(bytes(random.choices(b"ab", k=40)), REG) for _ in range(500)]
    before = count_states()
    made = policy(b"/.*a.{16} X\n")
    labels = made.labels(made.root, names)
    assert labels == [b"X" if name[-17:-16] == b"a" else None for name, _ in names]
    assert 0 < count_states() - before < 2000


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"/a.*", "a regular expression without a context"),
        (b"/a.* -x X", "no such file type: '-x'"),
        (b"/a.* dir X", "no such file type: 'dir'"),
        (b"/a\xc3\xa4 X", "not ASCII"),
        (b"/a\0 X", "NUL"),
    ],
)
def test_a_broken_line_is_refused(line: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        policy(b"# \xff may say anything\n" + line + b"\n")


@pytest.mark.parametrize(
    ("line", "why"),
    [(b"/a -d", "without a context"), (b"/a -- X more", "trailing words"), (b"/a X more", "trailing words")],
)
def test_composefs_rs_refuses_these_lines(line: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        parse_specs(line, "f", "composefs-rs")


def test_substitutions_are_two_words_a_line() -> None:
    text = b"# no\n /a /b more\n/alone\n\n"
    assert parse_substitutions(text, "f", "libselinux") == [(b"/a", b"/b")]
    with pytest.raises(FormatError, match="f, line 2: 3 words"):
        parse_substitutions(text, "f", "composefs-rs")


@pytest.mark.parametrize(
    ("config", "libselinux", "composefs_rs"),
    [
        (b"SELINUX=enforcing\nSELINUXTYPE=targeted\n", b"targeted", b"targeted"),
        (b"  selinuxtype=  mls \t\r\n", b"mls", b"mls"),
        (b"SELINUXTYPE=one\nSELINUXTYPE=two", b"two", b"one"),
        (b"SELINUXTYPE = x\n", None, b"x"),
        (b"#SELINUXTYPE=x\n", None, None),
        (b"SELINUX=disabled\n", None, None),
        (b"SELINUXTYPE=x # not a comment\n", b"x # not a comment", b"x # not a comment"),
        (b"SELINUXTYPE=\nSELINUX=permissive\n", b"", b""),
    ],
)
def test_the_config_names_the_policy(config: bytes, libselinux: bytes | None, composefs_rs: bytes | None) -> None:
    """As selinux_config.c and composefs-boot's parse_config read it; libselinux's `targeted` by default is not ours."""
    assert parse_policy_type(config, "libselinux") == libselinux
    assert parse_policy_type(config, "composefs-rs") == composefs_rs


SEED = b"/a(/.*)?\tX\n/a/[b-d]{1,2} -d Y\n(/u)?/v.+ <<none>>\n/lit\\.eral L\n"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_policies_raise_only_our_errors(data: st.DataObject) -> None:
    damaged = bytearray(SEED)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"(", b")", b"[", b"]", b"}", b"\\", b"|", b"*", b"\n", b"-"])
        )
    rules: Rules = data.draw(st.sampled_from(("libselinux", "composefs-rs")))
    try:
        made = Policy.parse({name: bytes(damaged) for name in FILES[: data.draw(st.integers(1, 5))]}, "/files", rules)
    except Error as error:
        named = error.message.startswith("/files/file_contexts")
    else:
        named = True
        made.label(b"/a/b", DIR)
    assert named
