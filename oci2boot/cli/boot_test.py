"""`oci2boot test`: does it boot, and is tampering caught?"""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.options import AsJson, ProgressJson, Quiet
from oci2boot.workflows.boot_test import BootTestRequest, try_disk


def register(app: typer.Typer) -> None:
    app.command(name="test")(boot_test)


def boot_test(
    disk: Annotated[Path, typer.Argument(help="a disk image that `install` wrote", show_default=False)],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="folder of `keys generate`: Secure Boot, with these enrolled", show_default=False),
    ] = None,
    tamper: Annotated[bool, typer.Option("--tamper", help="boot tampered copies too: each must be refused")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="seconds for one boot")] = 300,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="a report for build services", show_default=False)
    ] = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Boot a disk in QEMU and see that it comes up on what it promises; the disk itself stays as it is.

    Status 1 where it does not, or where tampering goes unnoticed.
    """
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        tested = try_disk(BootTestRequest(disk, keys, tamper, timeout, junit), report)
    if as_json:
        output.print_json(tested.to_json())
    else:
        output.print_table(
            ("CASE", "RESULT", "SECONDS", "EVIDENCE"),
            [
                (case.name, "ok" if case.ok else "FAILED", f"{case.seconds:.0f}", case.evidence.partition("\n")[0])
                for case in tested.cases
            ],
        )
        secure = "under Secure Boot" if tested.secure_boot else "without Secure Boot"
        failed = sum(not case.ok for case in tested.cases)
        verdict = f"{failed} of {len(tested.cases)} cases failed" if failed else "as it must be"
        output.print_facts([(str(disk), f"{verdict} ({tested.accelerator}, {secure})")])
    if not tested.ok:
        raise typer.Exit(1)
