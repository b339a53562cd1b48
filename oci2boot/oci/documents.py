"""JSON out of untrusted hands: bounded, unambiguous, and of the types that it should have."""

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from oci2boot.digest import OciDigest
from oci2boot.errors import FormatError, LimitError

MAX_DOCUMENT: Final = 4 << 20
"""Bytes of a manifest, an index or a config; containers/image, internal/iolimits."""
MAX_SIZE: Final = (1 << 63) - 1
MAX_ANNOTATIONS: Final = 4096


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Return the one JSON object that `data` is; `what` names it in errors."""
    if len(data) > MAX_DOCUMENT:
        raise LimitError(f"{what} has {len(data)} bytes, {MAX_DOCUMENT} are allowed")
    try:
        document = json.loads(data.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{what} is not a JSON object")
    return document


def text_of(holder: Mapping[str, Any], key: str, what: str, default: str | None = None) -> str:
    """Return a string; where the key is absent, `default`, and without one it is an error."""
    value = holder.get(key, default)
    if not isinstance(value, str) or not _is_unicode(value):
        raise FormatError(f"{what} has no proper {key!r}")
    return value


def _is_unicode(value: str) -> bool:
    # JSON escapes can spell half a surrogate pair, which no encoding can write.
    return value.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def size_of(holder: Mapping[str, Any], key: str, what: str) -> int:
    value = holder.get(key)
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise FormatError(f"{what} has no proper {key!r}")
    return value


def digest_of(holder: Mapping[str, Any], key: str, what: str) -> OciDigest:
    return OciDigest.parse(text_of(holder, key, what))


def object_of(holder: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    value = holder.get(key)
    if not isinstance(value, dict):
        raise FormatError(f"{what} has no proper {key!r}")
    return value


def list_of(holder: Mapping[str, Any], key: str, what: str, limit: int) -> list[Any]:
    value = holder.get(key)
    if not isinstance(value, list):
        raise FormatError(f"{what} has no proper {key!r}")
    if len(value) > limit:
        raise LimitError(f"{what} lists {len(value)} {key}, {limit} are allowed")
    return value


def texts_of(holder: Mapping[str, Any], key: str, what: str) -> dict[str, str]:
    """Return a map from strings to strings, as annotations and labels are; empty where it is absent or null."""
    value = holder.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(f"{what} has no proper {key!r}")
    if len(value) > MAX_ANNOTATIONS:
        raise LimitError(f"{what} has {len(value)} {key}, {MAX_ANNOTATIONS} are allowed")
    if not all(_is_unicode(name) and _is_unicode(text) for name, text in value.items()):
        raise FormatError(f"{what} has no proper {key!r}")
    return value
