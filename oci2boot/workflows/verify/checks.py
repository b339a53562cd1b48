"""What a verification finds: one line for each claim, with what it was seen by."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from oci2boot.errors import Error

State = Literal["ok", "failed", "not checked"]

NAMED_MAX: Final = 20
"""Failures of one kind that are told one by one; the others are counted."""


class NotCheckedError(Error):
    """Something that cannot be checked here, for the reason that the message gives."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    evidence: str

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "result": self.state, "evidence": self.evidence}


class Checks:
    """Collects checks in the order in which they are made."""

    def __init__(self) -> None:
        self.made: list[Check] = []

    def ok(self, name: str, evidence: str) -> None:
        self.made.append(Check(name, "ok", evidence))

    def failed(self, name: str, evidence: str) -> None:
        self.made.append(Check(name, "failed", evidence))

    def unchecked(self, name: str, evidence: str) -> None:
        self.made.append(Check(name, "not checked", evidence))

    def verdict(self, name: str, problems: Iterable[str], evidence: str) -> None:
        """Add one check: failed with the problems, or ok with the evidence where there are none."""
        found = "; ".join(problems)
        if found:
            self.failed(name, found)
        else:
            self.ok(name, evidence)

    def each(self, failures: list[tuple[str, str]], name: str, evidence: str) -> None:
        """Add a failed check for every (name, problem), up to a limit; without any, one that is ok."""
        for one, problem in failures[:NAMED_MAX]:
            self.failed(one, problem)
        if len(failures) > NAMED_MAX:
            self.failed(name, f"{len(failures) - NAMED_MAX} more failed")
        if not failures:
            self.ok(name, evidence)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Turn an `Error` within into a failed check; `NotCheckedError` into one that is not checked."""
        try:
            yield
        except NotCheckedError as error:
            self.unchecked(name, error.message)
        except Error as error:
            self.failed(name, error.message)
