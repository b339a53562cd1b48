"""The people of an old system among the accounts of a new one. passwd(5), shadow(5), group(5), gshadow(5), subuid(5)"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

PEOPLE: Final = range(1000, 60000)
"""Numbers that login.defs(5) gives to people; systemd has others above."""
FILES: Final = ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")
SHELLS: Final = ("/bin/bash", "/bin/sh")
_WIDTH: Final = {"passwd": 7, "shadow": 9, "group": 4, "gshadow": 4, "subuid": 3, "subgid": 3}

Rows = list[list[str]]


@dataclass(slots=True)
class Accounts:
    """The rows of these files, each split at its colons."""

    rows: dict[str, Rows]
    names: list[str] = field(default_factory=list)
    """Whose accounts were added."""
    notes: list[str] = field(default_factory=list)

    def write(self) -> dict[str, bytes]:
        return {
            name: "".join(":".join(row) + "\n" for row in rows).encode() for name, rows in self.rows.items() if rows
        }

    def find(self, file: str, name: str) -> list[str] | None:
        return next((row for row in self.rows[file] if row[0] == name), None)


def read_accounts(files: Mapping[str, bytes]) -> Accounts:
    """Take what is there of these files; a line of another width, or with bytes that are no text, is none."""
    rows: dict[str, Rows] = {}
    for name in FILES:
        lines = (line.split(":") for line in files.get(name, b"").decode(errors="replace").splitlines())
        rows[name] = [row for row in lines if len(row) == _WIDTH[name] and "\ufffd" not in "".join(row)]
    return Accounts(rows)


def with_people(image: Accounts, old: Accounts, shells: Sequence[str]) -> Accounts:
    """Return the image's accounts with the people of the old system, their groups and root's password.

    A name or number that the image has for another stays the image's, and is said. `shells` are those of the image.
    """
    made = Accounts({name: [list(row) for row in rows] for name, rows in image.rows.items()})
    taken = {number for row in made.rows["passwd"] if (number := _number(row[2])) is not None}
    for row in _people(old):
        name, number = row[0], int(row[2])
        if made.find("passwd", name):
            made.notes.append(f"{name}: the image has an account of this name, which stays")
            continue
        if number in taken:
            made.notes.append(f"{name}: the image has another account with the number {number}")
            continue
        if row[6] not in shells:
            shell = next((one for one in SHELLS if one in shells), "/bin/sh")
            made.notes.append(f"{name}: the image has no {row[6]}, the shell is {shell}")
            row = [*row[:6], shell]
        made.rows["passwd"].append(list(row))
        made.names.append(name)
        for file in ("shadow", "subuid", "subgid"):
            if found := old.find(file, name):
                made.rows[file].append(list(found))
    _add_groups(made, old)
    password = old.find("shadow", "root")
    if password and password[1] not in ("", "*", "!", "!*") and (mine := made.find("shadow", "root")):
        mine[1:3] = password[1:3]
        made.names.insert(0, "root")
    return made


def _people(old: Accounts) -> Iterator[list[str]]:
    return (row for row in old.rows["passwd"] if _number(row[2]) in PEOPLE)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None


def _add_groups(made: Accounts, old: Accounts) -> None:
    """Add the groups that people have for themselves, and people to those of the image that they were in before."""
    people = set(made.names)
    taken = {_number(row[2]) for row in made.rows["group"]}
    for row in old.rows["group"]:
        name, number = row[0], _number(row[2])
        members = [member for member in row[3].split(",") if member in people]
        there = made.find("group", name)
        if there:
            _join(there, members)
            if shadow := made.find("gshadow", name):
                _join(shadow, members)
        elif number in PEOPLE and number not in taken:
            made.rows["group"].append([name, row[1], row[2], ",".join(members)])
            if shadow := old.find("gshadow", name):
                made.rows["gshadow"].append([name, shadow[1], "", ",".join(members)])
        elif members:
            made.notes.append(f"{', '.join(members)}: the image has no group {name}")


def _join(row: list[str], members: Sequence[str]) -> None:
    row[3] = ",".join(dict.fromkeys([*filter(None, row[3].split(",")), *members]))
