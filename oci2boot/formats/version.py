"""Which of two versions is newer. UAPI.10, "Version Format Specification"; systemd-boot orders its menu so."""

import re
from functools import cmp_to_key
from typing import Final

_NO_PART: Final = re.compile(r"[^A-Za-z0-9~.^-]*")
"""Passed over where a part begins: `1_2` has two parts, `12` has one."""
_DIGITS: Final = re.compile(r"[0-9]*")
_LETTERS: Final = re.compile(r"[A-Za-z]*")


def compare(first: str, second: str) -> int:
    """Return a number below, above or of zero: `first` is older, newer, or the same."""
    a, b = first, second
    while True:
        a, b = a[len(_head(_NO_PART, a)) :], b[len(_head(_NO_PART, b)) :]
        if order := _order(not a.startswith("~"), not b.startswith("~")):
            return order
        if a[:1] == "~":
            a, b = a[1:], b[1:]
        if not a or not b:
            return _order(bool(a), bool(b))
        for mark in "-^.":
            if order := _order(a[:1] != mark, b[:1] != mark):
                return order
            if a[:1] == mark:
                a, b = a[1:], b[1:]
        numbers = a[:1].isdigit() or b[:1].isdigit()
        form = _DIGITS if numbers else _LETTERS
        one, other = _head(form, a), _head(form, b)
        a, b = a[len(one) :], b[len(other) :]
        if numbers:
            # An empty number is older than zero.
            if order := _order(bool(one), bool(other)):
                return order
            one, other = one.lstrip("0"), other.lstrip("0")
            if order := _order(len(one), len(other)):
                return order
        if one != other:
            return -1 if one < other else 1


key = cmp_to_key(compare)


def _order(a: int, b: int) -> int:
    return (a > b) - (a < b)


def _head(form: re.Pattern[str], text: str) -> str:
    match = form.match(text)
    return match[0] if match else ""
