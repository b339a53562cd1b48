"""How a field of a request is said.

The command line and its help, `oci2boot.toml` and its schema, and the shell's completion are all made of these: an
option is written once, at the field that it fills.
"""

import re
from collections.abc import Callable
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from oci2boot.errors import FormatError


@dataclass(frozen=True, slots=True)
class Option:
    """Stands in the `Annotated` of a field or parameter; without dashes before its name it is an argument."""

    name: str
    """`--name`, or `--name/--opposite` for what is true or false."""
    help: str = ""
    _: KW_ONLY
    short: str | None = None
    metavar: str | None = None
    env: str | None = None
    least: int | None = None
    most: int | None = None
    type: Any = None
    """As it is typed, where the field holds something else."""
    parse: Callable[[Any], object] | None = None
    """Makes the field's value, or each of its values, of a text."""
    many: bool = False
    """It may be repeated, and `parse` makes one value of all the texts."""
    default: Callable[[], object] | None = None
    """What it is where nobody says it, and the field itself has no default."""
    shown: bool = True
    """Help tells the default."""
    complete: Callable[[str], list[str]] | None = None
    """Continues what was typed so far."""
    missing: str | None = None
    """Said where others of its group are given, and not this one, which they need."""

    @property
    def key(self) -> str:
        """Return its name in `oci2boot.toml`."""
        return self.name.partition("/")[0].removeprefix("--").lower()

    @property
    def positional(self) -> bool:
        return not self.name.startswith("-")


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return a type, and whether None was said beside it."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    (kind,) = (one for one in get_args(hint) if one is not NoneType)
    return kind, True


def option_of(hint: Any) -> Option | None:
    """Return what stands in the `Annotated` of a field or parameter."""
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((one for one in extras if isinstance(one, Option)), None)


def said(group: Any) -> list[str]:
    """Return the names of the options whose fields, in this dataclass, are not as they are by default."""
    hints = get_type_hints(type(group), include_extras=True)
    found = []
    for field in fields(group):
        usual = field.default if field.default_factory is MISSING else field.default_factory()
        option = option_of(hints[field.name])
        if option and getattr(group, field.name) != usual:
            found.append(option.name.partition("/")[0])
    return found


def parse_size(text: str) -> int:
    """Return bytes: `10G`, `512MiB`, `4096`; units are binary."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise FormatError(f"not a size: {text!r}", hint="write it as 512M or 10G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]


def parse_bool(text: str) -> bool:
    match text.lower():
        case "true" | "yes" | "1":
            return True
        case "false" | "no" | "0":
            return False
    raise FormatError(f"neither true nor false: {text!r}")
