"""`oci2boot verify`: is it intact?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from oci2boot.cli.output import Output, out
from oci2boot.workflows.make.first_boot import read_secret
from oci2boot.workflows.options import Option
from oci2boot.workflows.verify.disk import Verified, VerifyRequest
from oci2boot.workflows.verify.disk import verify as run_verify

_COLOURS = {"ok": "green", "failed": "bold red", "not checked": "yellow"}


def verify(
    *,
    target: Annotated[Path, Option("TARGET", "a disk image, a mounted physical root, or a repository")],
    against: Annotated[Path | None, Option("--against", "manifest that it must equal")] = None,
    db: Annotated[tuple[Path, ...], Option("--db", "certificate that the firmware trusts; may be repeated")] = (),
    esp: Annotated[Path | None, Option("--esp", "directory with the boot files of a mounted root")] = None,
    passphrase: Annotated[
        Path | None, Option("--luks-passphrase-file", "file whose one line opens an encrypted root partition")
    ] = None,
    output: Output,
) -> None:
    """Check a disk without mounting or starting it: partitions, UKIs, signatures, EROFS, objects and their fs-verity.

    The exit status is 1 if anything fails, or if the root file system is encrypted and nothing opens it.
    """
    request = VerifyRequest(target, esp, against, db, read_secret(passphrase))
    with output.reporting() as report:
        verified = run_verify(request, report)
    output.show(verified, _show)
    if not verified.ok:
        raise typer.Exit(1)


def _show(verified: Verified) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("CHECK", "RESULT", "EVIDENCE"):
        table.add_column(column, overflow="fold")
    for check in verified.checks:
        result = f"[{_COLOURS[check.state]}]{check.state}[/]"
        table.add_row(escape(check.name), result, escape(check.evidence))
    out.print(table)
    failed = sum(check.state == "failed" for check in verified.checks)
    if failed:
        verdict = f"[bold red]{failed} of {len(verified.checks)} checks failed[/]"
    else:
        verdict = "[bold green]intact[/]" if verified.complete else "[bold yellow]not verified: it is encrypted[/]"
    out.print(f"{escape(str(verified.target))} ({verified.kind}): {verdict}")
