"""How results, progress and failures look: for people on a terminal, or as JSON for programs."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TextIO

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
from oci2boot.store.fsck import Checked
from oci2boot.store.images import Bootable
from oci2boot.store.reach import GarbagePlan
from oci2boot.store.roots import DmVerityRoot
from oci2boot.workflows.install.disk import Installed
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


def print_json(value: Any) -> None:
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


@contextmanager
def reporting(*, progress_json: bool = False, quiet: bool = False) -> Iterator[Report]:
    """Give a place for events: bars on a terminal, plain lines elsewhere, JSON lines on request; all on stderr."""
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
        err.print(f"[yellow]warning:[/] {escape(event.text)}")


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
                self._progress.console.print(f"[yellow]warning:[/] {escape(event.text)}")
            case Told():
                self._progress.console.print(escape(event.text))


def show_bootable(bootable: Bootable) -> None:
    facts = [
        ("image", bootable.name),
        ("system", f"{bootable.title} ({bootable.architecture})"),
        ("digest", f"{bootable.root.image.algorithm}:{bootable.root.image}"),
    ]
    if isinstance(verity := bootable.root, DmVerityRoot):
        signed = ", signed" if verity.signature_object else ""
        sizes = f"{size(verity.data_size)} of {size(verity.raw_size)}, {verity.ratio:.0%}"
        facts += [
            ("root hash", f"{verity.root_hash}{signed}" if verity.root_hash else "none: nothing guards it"),
            ("EROFS", f"{sizes} ({verity.compression})"),
        ]
    if bootable.kernel:
        facts += [("kernel", bootable.kernel), ("command line", bootable.cmdline or "")]
        facts += [("boot files", ", ".join(sorted(bootable.esp)))]
    print_facts(facts)
    if bootable.kernel:
        out.print(f"[dim]next: oci2boot install {escape(bootable.name)} --target disk.raw[/]")


def show_images(images: Sequence[Bootable]) -> None:
    rows = [
        (image.name, image.root.image.hex[:16], image.title, image.kernel or "none", image.architecture, image.source)
        for image in images
    ]
    if rows:
        print_table(("NAME", "DIGEST", "SYSTEM", "KERNEL", "ARCH", "SOURCE"), rows)
    else:
        out.print("no image has been converted yet")


def show_installed(installed: Installed) -> None:
    plan = installed.plan
    print_table(
        ("PARTITION", "START", "SIZE", "USED", "FILE SYSTEM", "GUID"),
        [
            (part.label, size(part.start), size(part.size), size(part.used), part.filesystem, part.guid)
            for part in plan.partitions
        ],
    )
    match installed.bootable.root:
        case DmVerityRoot(root_hash=None):
            verified = "nothing: converted without dm-verity"
        case DmVerityRoot(root_hash=root_hash):
            verified = f"the root partition by dm-verity, {root_hash}"
        case _:
            verified = f"{plan.as_json()['verity_files']} files by fs-verity"
    device, done = installed.device, "written" if installed.written else "not written"
    print_facts(
        [
            *(
                [
                    ("device", f"{device.model or device.name}{', removable' if device.removable else ''}"),
                    ("found on it", ", ".join(device.signatures) or "nothing"),
                ]
                if device
                else []
            ),
            ("image", f"{installed.bootable.name} ({installed.bootable.title})"),
            ("boots", str(installed.bootable.cmdline)),
            ("verified", verified),
            *([("encrypted", "the root partition, by LUKS2")] if plan.root.header else []),
            *([("firmware", f"boot entry {installed.nvram}")] if installed.nvram else []),
            ("disk", f"{installed.target} ({installed.format}, {size(plan.size)}), {done}"),
        ]
    )


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


def show_checked(checked: Checked) -> None:
    for problem in checked.problems:
        out.print(f"[red]{escape(problem)}[/]")
    verdict = f"[bold red]{len(checked.problems)} problems[/]" if checked.problems else "[bold green]ok[/]"
    out.print(f"{checked.objects} objects, {checked.streams} streams, {checked.images} images: {verdict}")


def show_garbage(plan: GarbagePlan, *, dry_run: bool) -> None:
    verb = "would free" if dry_run else "freed"
    out.print(
        f"{verb} {size(plan.freed)}: {len(plan.objects)} objects, {len(plan.links)} names, "
        f"{len(plan.leftovers)} leftovers; {plan.kept} objects stay"
    )
