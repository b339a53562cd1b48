"""What a verification finds: one line for each claim, with what it was seen by."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
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

    def attempt(self, name: str) -> "_Attempt":
        """Turn an `Error` within into a failed check; `NotCheckedError` into one that is not checked."""
        return _Attempt(self, name)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A class and no generator, so that the type checker knows that what comes after the block may be reached."""

    checks: Checks
    name: str

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        match error:
            case NotCheckedError():
                self.checks.unchecked(self.name, error.message)
            case Error():
                self.checks.failed(self.name, error.message)
        return isinstance(error, Error)
