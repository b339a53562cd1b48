"""A kernel's configuration, the text of `.config`. Linux, Documentation/kbuild/kconfig.rst."""

import re
from typing import Final

from oci2boot.errors import FormatError, LimitError

MAX_SIZE: Final = 4 << 20
"""Debian's has 280 kB."""

_LINE: Final = re.compile(rb"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$", re.MULTILINE)


def parse(data: bytes) -> dict[str, str]:
    """Return option → value without the `CONFIG_`: `y`, `m`, `n` (not set), or what was assigned."""
    if len(data) > MAX_SIZE:
        raise LimitError(f"a kernel configuration of {len(data)} bytes, at most {MAX_SIZE} are read")
    options = {
        (name or unset).decode(): value.strip().decode(errors="replace") if name else "n"
        for name, value, unset in _LINE.findall(data)
    }
    if not options:
        raise FormatError("not a kernel configuration: no CONFIG_ line in it")
    return options
