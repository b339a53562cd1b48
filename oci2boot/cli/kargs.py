"""`oci2boot kargs`: a machine's own kernel arguments."""

from typing import Annotated

import typer

from oci2boot.cli.groups import command
from oci2boot.cli.options import DryRun, JustJson, Mounted, Shown, SigningNow
from oci2boot.cli.output import out
from oci2boot.workflows.machine.kargs import LocalArguments, add_arguments, list_arguments, remove_arguments
from oci2boot.workflows.options import Option

app = typer.Typer(name="kargs", no_args_is_help=True, help="This machine's own kernel arguments, in a signed addon.")

Words = Annotated[tuple[str, ...], Option("ARGUMENTS", metavar="ARGUMENT...")]


@command(app, "list")
def list_all(*, place: Mounted, output: JustJson) -> None:
    """Show what this machine adds to its images' command lines."""
    output.show(list_arguments(place.open()), _show)


@command(app)
def add(*, arguments: Words, signing: SigningNow, dry_run: DryRun = False, place: Mounted, output: Shown) -> None:
    """Add arguments that weaken nothing: consoles, logging, locale, huge pages and the like."""
    with output.reporting() as report:
        made = add_arguments(place.open(), arguments, signing, report, dry_run=dry_run)
    output.show(made, _show)


@command(app)
def remove(*, arguments: Words, signing: SigningNow, dry_run: DryRun = False, place: Mounted, output: Shown) -> None:
    """Remove arguments that this machine added."""
    with output.reporting() as report:
        made = remove_arguments(place.open(), arguments, signing, report, dry_run=dry_run)
    output.show(made, _show)


def _show(found: LocalArguments) -> None:
    out.print(" ".join(found.arguments) or "none", markup=False)
