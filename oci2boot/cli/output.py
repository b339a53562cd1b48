"""How results, progress and failures look: for people on a terminal, or as JSON for programs."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol, TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.tree import Tree

from oci2boot.cli.hints import hint_of
from oci2boot.errors import Error
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Event, Report, Step, Told, Warned

_UNWRAPPED = 1000
"""Columns where nobody looks: lines stay whole for grep."""


def _console(stream: TextIO, *, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, emoji=False, width=None if stream.isatty() else _UNWRAPPED)


out = _console(sys.stdout)
err = _console(sys.stderr, stderr=True)


def show_error(error: Error, *, as_json: bool) -> None:
    hint = hint_of(error)
    if as_json:
        print_json({"error": error.message, "hint": hint})
        return
    err.print(f"[bold red]error:[/] {escape(error.message)}")
    if hint:
        err.print(f"[bold]hint:[/] {escape(hint)}")


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def print_etc(rows: Sequence[Mapping[str, Any]]) -> None:
    """Show what becomes of a machine's changes in /etc."""
    if rows:
        shown = [(row["path"], row["change"], row["decision"], row["conflict"] or "") for row in rows]
        print_table(("/ETC", "CHANGE", "DECISION", "CONFLICT"), shown)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print name and value, a line each, the values below one another."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, escape(value))
    out.print(table)


def size(count: int) -> str:
    """Bytes for people: `12.3 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


class Result(Protocol):
    """What a workflow gives back."""

    def to_json(self) -> Mapping[str, object]: ...


R = TypeVar("R", bound=Result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How a command tells what it does, and what came of it."""

    as_json: Annotated[bool, Option("--json", "print the result as JSON")] = False
    progress_json: Annotated[bool, Option("--progress-json", "print progress as JSON lines on standard error")] = False
    quiet: Annotated[bool, Option("--quiet", "show no progress", short="-q")] = False

    def reporting(self) -> AbstractContextManager[Report]:
        """Give a place for events: bars on a terminal, lines elsewhere, JSON lines on request; all on stderr."""
        return _reporting(progress_json=self.progress_json, quiet=self.quiet)

    def show(self, result: R, in_words: Callable[[R], None], **more: object) -> None:
        """Show a result; `more` is told to programs alone."""
        if self.as_json:
            print_json({**result.to_json(), **more})
        else:
            in_words(result)

    def say(self, facts: Mapping[str, object], text: str) -> None:
        """Show what is one sentence."""
        if self.as_json:
            print_json(facts)
        else:
            out.print(text)


@contextmanager
def _reporting(*, progress_json: bool, quiet: bool) -> Iterator[Report]:
    if progress_json:
        yield _json_events
    elif err.is_terminal and not quiet:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
        ) as progress:
            yield _Bars(progress)
    else:
        yield _quiet_events if quiet else _line_events


def _json_events(event: Event) -> None:
    sys.stderr.write(json.dumps({"event": type(event).__name__.lower(), **asdict(event)}) + "\n")


def _quiet_events(event: Event) -> None:
    if isinstance(event, Warned):
        err.print(f"[yellow]warning:[/] {escape(_warning(event))}")


def _warning(event: Warned) -> str:
    return f"{event.text} [{event.lint}]" if event.lint else event.text


def _line_events(event: Event) -> None:
    match event:
        case Step(finished=True):
            err.print(escape(f"{event.task}: {event.note or 'done'}"))
        case Told():
            err.print(escape(event.text))
        case _:
            _quiet_events(event)


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case Step():
                if event.task not in self._tasks:
                    self._tasks[event.task] = self._progress.add_task(escape(event.task), total=event.total, note="")
                task = self._tasks[event.task]
                self._progress.update(task, completed=event.done, total=event.total, note=escape(event.note))
                if event.finished:
                    self._progress.update(task, completed=event.total or event.done, total=event.total or event.done)
            case Warned():
                self._progress.console.print(f"[yellow]warning:[/] {escape(_warning(event))}")
            case Told():
                self._progress.console.print(escape(event.text))


def show_inspected(found: Mapping[str, Any]) -> None:
    """Show a description as a tree."""
    tree = Tree(f"[bold]{escape(str(found.get('name') or found.get('source')))}[/]", guide_style="dim")
    _grow(tree, found)
    out.print(tree)


def _grow(tree: Tree, value: Mapping[str, Any]) -> None:
    for name, item in value.items():
        label = f"[bold]{escape(name if '/' in name else name.replace('_', ' '))}[/]"
        if isinstance(item, Mapping):
            if item:
                _grow(tree.add(label), item)
        elif isinstance(item, list):
            branch = tree.add(f"{label} ({len(item)})")
            for number, one in enumerate(item, 1):
                if isinstance(one, Mapping):
                    _grow(branch.add(str(number)), one)
                else:
                    branch.add(escape(str(one)))
        elif item not in (None, ""):
            shown = size(item) if isinstance(item, int) and "size" in name else str(item)
            tree.add(f"{label} {escape(shown)}")
