"""`oci2boot test`: does it boot, is it measured, and is tampering caught?"""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.options import AsJson, ProgressJson, Quiet
from oci2boot.workflows.trial.boot import BootTestRequest, Tested, UseTpm, try_disk


def register(app: typer.Typer) -> None:
    app.command(name="test")(boot_test)


def boot_test(
    disk: Annotated[Path, typer.Argument(help="a disk image that `install` wrote", show_default=False)],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="folder of `keys generate`: Secure Boot, with these enrolled", show_default=False),
    ] = None,
    tamper: Annotated[bool, typer.Option("--tamper", help="boot tampered copies too: each must be refused")] = False,
    tpm: Annotated[
        UseTpm, typer.Option("--tpm", help="compare what a TPM measures; auto: where swtpm is installed")
    ] = "auto",
    timeout: Annotated[float, typer.Option("--timeout", help="seconds for one boot")] = 600,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="a report for build services", show_default=False)
    ] = None,
    screenshot: Annotated[
        Path | None,
        typer.Option("--screenshot", help="PNG of the screen when it is up, or given up on", show_default=False),
    ] = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Boot a disk in QEMU and see that it comes up on what it promises; the disk itself stays as it is.

    Status 1 where it does not, or where tampering goes unnoticed.
    """
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        tested = try_disk(BootTestRequest(disk, keys, tamper, timeout, junit, tpm, screenshot), report)
    if as_json:
        output.print_json(tested.to_json())
    else:
        _show(tested)
    if not tested.ok:
        raise typer.Exit(1)


def _show(tested: Tested) -> None:
    rows = []
    for case in tested.cases:
        result = "not asked" if case.skipped else "ok" if case.ok else "FAILED"
        rows.append((case.name, result, f"{case.seconds:.0f}", case.evidence.partition("\n")[0]))
    output.print_table(("CASE", "RESULT", "SECONDS", "EVIDENCE"), rows)
    secure = "under Secure Boot" if tested.secure_boot else "without Secure Boot"
    failed = len(tested.failed)
    verdict = f"{failed} of {len(tested.cases)} cases failed" if failed else "as it must be"
    facts = [(str(tested.disk), f"{verdict} ({tested.accelerator}, {secure})")]
    if tested.boot_seconds:
        times = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in tested.boot_seconds.items())
        facts.append(("seconds from the kernel's start", times))
    output.print_facts(facts)
