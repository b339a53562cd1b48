"""os-release files. The syntax of os-release(5): shell-like assignments, one a line."""

import re
from collections.abc import Mapping
from typing import Final

from oci2boot.errors import FormatError, LimitError

MAX_SIZE: Final = 64 << 10

_ASSIGNMENT: Final = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
_ESCAPED: Final = re.compile(r"\\([\"$`\\])")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]*")


def _decode(data: bytes) -> str:
    if len(data) > MAX_SIZE:
        raise LimitError(f"an os-release file of {len(data)} bytes, at most {MAX_SIZE} are read")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("an os-release file that is not UTF-8") from error


def _unquote(value: str) -> str:
    quote = value[:1]
    if quote and quote in "\"'" and len(value) > 1 and value[-1] == quote:
        value = value[1:-1]
        return value if quote == "'" else _ESCAPED.sub(r"\1", value)
    return value


def parse(data: bytes) -> dict[str, str]:
    """Return the assignments, unquoted. As systemd does, other lines are passed over, and the last of a name counts."""
    matches = (_ASSIGNMENT.fullmatch(line.strip()) for line in _decode(data).splitlines())
    return {match[1]: _unquote(match[2]) for match in matches if match}


def pick(fields: Mapping[str, str]) -> tuple[str | None, str | None, str | None]:
    """Return title, version and sort key of a boot entry. systemd, `bootspec_pick_name_version_sort_key`."""

    def first(*names: str) -> str | None:
        return next((fields[name] for name in names if name in fields), None)

    return (
        first("PRETTY_NAME", "IMAGE_ID", "NAME", "ID"),
        first("IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"),
        first("IMAGE_ID", "ID"),
    )


def with_fields(data: bytes, fields: Mapping[str, str]) -> bytes:
    """Return the file with these assignments at its end and nowhere else."""
    kept = [line for line in _decode(data).splitlines() if line.partition("=")[0].strip() not in fields]
    for name, value in fields.items():
        if not value.isprintable():
            raise FormatError(f"not a value for os-release: {value[:100]!r}")
        quoted = value if _PLAIN.fullmatch(value) else '"' + re.sub(r"([\"$`\\])", r"\\\1", value) + '"'
        kept.append(f"{name}={quoted}")
    return "".join(f"{line}\n" for line in kept).encode()
