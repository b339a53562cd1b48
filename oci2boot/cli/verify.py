"""`oci2boot verify`: is it intact?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from oci2boot.cli import output
from oci2boot.cli.options import AsJson, ProgressJson, Quiet
from oci2boot.workflows.make.first_boot import read_secret
from oci2boot.workflows.verify.disk import Verified, VerifyRequest
from oci2boot.workflows.verify.disk import verify as run_verify

_COLOURS = {"ok": "green", "failed": "bold red", "not checked": "yellow"}


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    target: Annotated[
        Path, typer.Argument(help="a disk image, a mounted physical root, or a repository", show_default=False)
    ],
    against: Annotated[
        Path | None, typer.Option("--against", help="a manifest that it has to equal", show_default=False)
    ] = None,
    db: Annotated[
        list[Path] | None,
        typer.Option("--db", help="a certificate that the firmware trusts; may be repeated", show_default=False),
    ] = None,
    esp: Annotated[
        Path | None, typer.Option("--esp", help="the boot files of a mounted root", show_default=False)
    ] = None,
    luks_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--luks-passphrase-file", help="opens an encrypted root partition: its one line", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a disk without mounting or starting it: partitions, UKIs, signatures, EROFS, objects and their fs-verity.

    Status 1 where anything fails, and where the root file system is encrypted and nothing opens it.
    """
    secret = read_secret(luks_passphrase_file)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        verified = run_verify(VerifyRequest(target, esp, against, tuple(db or ()), secret), report)
    if as_json:
        output.print_json(verified.to_json())
    else:
        show_verified(verified)
    if not verified.ok:
        raise typer.Exit(1)


def show_verified(verified: Verified) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("CHECK", "RESULT", "EVIDENCE"):
        table.add_column(column, overflow="fold")
    for check in verified.checks:
        result = f"[{_COLOURS[check.state]}]{check.state}[/]"
        table.add_row(escape(check.name), result, escape(check.evidence))
    output.out.print(table)
    failed = sum(check.state == "failed" for check in verified.checks)
    if failed:
        verdict = f"[bold red]{failed} of {len(verified.checks)} checks failed[/]"
    else:
        verdict = "[bold green]intact[/]" if verified.complete else "[bold yellow]not verified: it is encrypted[/]"
    output.out.print(f"{escape(str(verified.target))} ({verified.kind}): {verdict}")
