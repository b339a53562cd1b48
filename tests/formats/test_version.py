"""Versions in order, by `systemd-analyze compare-versions`."""

import itertools
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.formats.version import compare, key
from tests.witness import program


def systemd(first: str, second: str) -> int:
    argv = [program("systemd-analyze"), "compare-versions", first, second]
    said = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    return {"<": -1, "==": 0, ">": 1}[said.split()[1]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("9", "10"), ("1~rc1", "1"), ("1.0", "1.0.1"), ("1-1", "1^1"), ("1^1", "1.1"), ("01", "1"), ("a", "1"),
        ("00", "0a"), ("1.", "1"), ("1", "1_"), ("~", ""), ("0", "-"), ("123.a", "123.a-3"), ("1a", "1.a"),
        ("1_2", "12"), ("debian_9+3-0.efi", "debian_10.efi"), ("debian_9.1.efi", "debian_9.efi"), ("1+2", "1+1"),
        ("20261121100000", "20261121095959"),
    ],
)  # fmt: skip
def test_systemd_orders_versions_so(first: str, second: str) -> None:
    assert compare(first, second) == systemd(first, second)
    assert compare(second, first) == systemd(second, first)


TEXTS = st.text(alphabet="01a~-^._", max_size=6)


@given(st.lists(TEXTS, max_size=5))
def test_the_order_is_one(texts: list[str]) -> None:
    for text in texts:
        assert compare(text, text) == 0
    ordered = sorted(texts, key=key)
    assert all(compare(first, second) <= 0 for first, second in itertools.pairwise(ordered))


@settings(max_examples=60, deadline=None)
@given(*[st.text(alphabet="01a~-^._+", max_size=6).map("1{}".format)] * 2)
def test_systemd_orders_any_two_so(first: str, second: str) -> None:
    assert compare(first, second) == systemd(first, second)
