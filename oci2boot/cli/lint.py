"""`oci2boot lint`: would this image boot as promised?"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer

from oci2boot.cli.groups import Only
from oci2boot.cli.output import Output, out, print_json, print_table
from oci2boot.errors import Error
from oci2boot.workflows.images import image_names
from oci2boot.workflows.lint.model import Lint
from oci2boot.workflows.lint.run import LINTS, Linted
from oci2boot.workflows.lint.sarif import to_sarif
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import BootOptions, ChosenRepo, Fetching, Linting
from oci2boot.workflows.verify.lint import LintRequest
from oci2boot.workflows.verify.lint import lint as run_lint

Booted = Annotated[BootOptions, Only("flow", "kernel", "initrd", "loader", "console", "kargs", "size_limit")]
"""How the image is going to be booted, as far as a check looks at it."""


def lint(
    *,
    image: Annotated[
        str | None, Option("IMAGE", "a source, a directory, or a converted image", complete=image_names)
    ] = None,
    listed: Annotated[bool, Option("--list", "print the checks, and look at nothing")] = False,
    sarif: Annotated[bool, Option("--sarif", "print what is found as SARIF 2.1.0")] = False,
    linting: Linting,
    boot: Booted,
    repo: ChosenRepo = None,
    fetching: Fetching,
    output: Output,
) -> None:
    """Look for what would keep an image from booting as promised, and for what is of no use in it. Runs none of it.

    What is found is a warning; with --strict, the exit status is 1 if anything is more than a note.
    """
    if listed:
        _list(LINTS, as_json=output.as_json)
        return
    if image is None:
        raise Error("which image?", hint="name a source or a directory, or ask for --list")
    request = LintRequest(image=image, repo=repo, options=fetching.options(), boot=boot, linting=linting)
    with output.reporting() as report:
        linted = run_lint(request, report)
    if sarif:
        print_json(to_sarif(linted))
    else:
        output.show(linted, _show)
    if linting.strict and linted.failures:
        raise typer.Exit(1)


def _list(lints: Sequence[Lint], *, as_json: bool) -> None:
    if as_json:
        print_json([lint.to_json() for lint in lints])
    else:
        print_table(
            ("CHECK", "SEVERITY", "BOOTC", "LOOKS AT"),
            [(lint.name, lint.severity, "yes" if lint.bootc else "", lint.what) for lint in lints],
        )


def _show(linted: Linted) -> None:
    if linted.findings:
        rows = [(one.lint.name, one.severity, one.sentence, one.hint) for one in linted.findings]
        print_table(("CHECK", "SEVERITY", "FOUND", "HINT"), rows)
    counts = Counter(finding.severity for finding in linted.findings)
    said = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in sorted(counts.items()))
    out.print(f"{len(linted.ran)} checks: {said or 'nothing found'}", markup=False)
