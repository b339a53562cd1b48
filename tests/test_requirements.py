"""`docs/requirements.md` and what the tests say that they prove."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/requirements.md").read_text()

_LINE = re.compile(r"^- \*\*([KCDOPB]\d?\.\d+)\*\* \S", re.MULTILINE)
_CITED = re.compile(r"\b([KCDOPB]\d?)\.(\d+)(?: ?(?:-|–|to) ?(?:\1\.)?(\d+))?\b")


def section(heading: str) -> str:
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def numbers(text: str) -> list[str]:
    return _LINE.findall(text)


def citations(text: str) -> Iterator[str]:
    """Yield each requirement that `text` names, those within a range (`C.3 to C.5`) too."""
    for prefix, first, last in _CITED.findall(text):
        yield from (f"{prefix}.{number}" for number in range(int(first), int(last or first) + 1))


REQUIREMENTS = numbers(TEXT.partition("\n## Done in part\n")[0])
CITED = {
    number: path.name
    for path in sorted((ROOT / "tests").rglob("*.py"))
    if path != Path(__file__)
    for number in citations(path.read_text())
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('"""K0.6"""', ["K0.6"]),
        ("C.15, C.16, D.3: both forms", ["C.15", "C.16", "D.3"]),
        ("P.9; systemd-stub(7)", ["P.9"]),
        ("C.3–C.5, O.1", ["C.3", "C.4", "C.5", "O.1"]),
        ("C.3 to C.5", ["C.3", "C.4", "C.5"]),
        ("K1.9-11", ["K1.9", "K1.10", "K1.11"]),
        ("C.5, D.6 and X.690, LANG=C.UTF-8, ABC.1", ["C.5", "D.6"]),
    ],
)
def test_lists_and_ranges_are_read(text: str, wanted: list[str]) -> None:
    assert list(citations(text)) == wanted


def test_no_requirement_is_left_out_or_there_twice() -> None:
    counts = Counter(number.partition(".")[0] for number in REQUIREMENTS)
    wanted = [f"{prefix}.{number}" for prefix, count in counts.items() for number in range(1, count + 1)]
    assert list(counts) == ["K0", "K1", "C", "D", "O", "P", "B"]
    assert wanted == REQUIREMENTS


def test_what_a_test_cites_is_a_requirement() -> None:
    assert {number: name for number, name in CITED.items() if number not in REQUIREMENTS} == {}


def test_what_no_test_cites_is_not_done() -> None:
    assert sorted(numbers(section("Not done"))) == sorted(set(REQUIREMENTS) - set(CITED))


def test_what_is_done_in_part_is_cited() -> None:
    assert set(numbers(section("Done in part"))) <= set(CITED)
