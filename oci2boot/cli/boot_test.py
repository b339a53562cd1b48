"""`oci2boot test`: does it boot, is it measured, and is tampering caught?"""

import typer

from oci2boot.cli.output import Output, print_facts, print_table
from oci2boot.workflows.trial.boot import BootTestRequest, Tested, try_disk


def test(*, request: BootTestRequest, output: Output) -> None:
    """Boot a disk in QEMU and see that it comes up on what it promises; the disk itself stays as it is.

    The exit status is 1 if it does not, or if tampering goes unnoticed.
    """
    with output.reporting() as report:
        tested = try_disk(request, report)
    output.show(tested, _show)
    if not tested.ok:
        raise typer.Exit(1)


def _show(tested: Tested) -> None:
    rows = []
    for case in tested.cases:
        result = "not asked" if case.skipped else "ok" if case.ok else "FAILED"
        rows.append((case.name, result, f"{case.seconds:.0f}", case.evidence.partition("\n")[0]))
    print_table(("CASE", "RESULT", "SECONDS", "EVIDENCE"), rows)
    secure = "under Secure Boot" if tested.secure_boot else "without Secure Boot"
    failed = len(tested.failed)
    verdict = f"{failed} of {len(tested.cases)} cases failed" if failed else "as it must be"
    facts = [(str(tested.disk), f"{verdict} ({tested.accelerator}, {secure})")]
    if tested.boot_seconds:
        times = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in tested.boot_seconds.items())
        facts.append(("seconds from the kernel's start", times))
    if tested.image_seconds:
        ways = ", ".join(
            f"{way} {seconds:.2f}{' (as this disk boots)' if way == tested.read else ''}"
            for way, seconds in tested.image_seconds.items()
        )
        facts.append(("seconds to verify the rootfs image", ways))
    print_facts(facts)
