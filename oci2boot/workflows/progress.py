"""What long work says while it runs: values, which the command line shows as bars, lines or JSON."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Work that has begun, moved on or ended: `done` of `total` bytes or items, as `unit` says."""

    task: str
    """What is worked on: `layer sha256:1234…`, `disk image`."""
    done: int = 0
    total: int | None = None
    _: KW_ONLY
    unit: str = "bytes"
    finished: bool = False
    note: str = ""
    """How it ended: `already stored`, `12 new objects`."""


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that the user should know, and that stops nothing."""

    text: str
    lint: str = ""
    """The check of `lint` that found it."""


@dataclass(frozen=True, slots=True)
class Told:
    """A result on the way: `digest 1234…`."""

    text: str


Event = Step | Warned | Told
Report = Callable[[Event], None]


def once(report: Report) -> Report:
    """Return a report to which no warning is said twice: a check of `lint` and what is made later may both have it."""
    said = set[str]()

    def tell(event: Event) -> None:
        if isinstance(event, Warned):
            if event.text in said:
                return
            said.add(event.text)
        report(event)

    return tell


def silent(event: Event) -> None:
    """Say nothing."""
