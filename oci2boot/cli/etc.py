"""`oci2boot etc-diff`: what a machine changed in /etc."""

from typing import Annotated

import typer
from rich.markup import escape

from oci2boot.cli import output
from oci2boot.cli.day2 import SysrootDir
from oci2boot.cli.options import AsJson
from oci2boot.workflows.etc import changed_etc


def register(app: typer.Typer) -> None:
    app.command(name="etc-diff")(etc_diff)


def etc_diff(
    sysroot: SysrootDir = None,
    deployment: Annotated[
        str | None,
        typer.Option("--deployment", help="start of its digest; by default the one that is booted", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs in /etc from what the image has there."""
    found = changed_etc(sysroot, deployment)
    if as_json:
        output.print_json(found.to_json())
        return
    for note in found.notes:
        output.err.print(f"[yellow]warning:[/] {escape(note)}")
    if found.changes:
        output.print_table(("CHANGE", "PATH"), [(change.change, change.path) for change in found.changes])
    else:
        output.out.print("/etc is the image's")
