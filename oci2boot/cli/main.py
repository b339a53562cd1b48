"""The command line: it only translates. Words to a request, a result to words, an `Error` to one line and status 1."""

import gc as gc_module
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from oci2boot import __version__
from oci2boot.cli import kargs, keys, uki
from oci2boot.cli.app import app
from oci2boot.cli.attach import attach
from oci2boot.cli.boot_test import test
from oci2boot.cli.config import build, config, read_config
from oci2boot.cli.convert import convert, pull
from oci2boot.cli.day2 import delete, pin, rollback, status, switch, unpin, upgrade
from oci2boot.cli.digest import digest
from oci2boot.cli.etc import etc_diff, finalize
from oci2boot.cli.explain import explain
from oci2boot.cli.groups import command
from oci2boot.cli.images import export, images, inspect, mount
from oci2boot.cli.install import install
from oci2boot.cli.lint import lint
from oci2boot.cli.output import out, show_error
from oci2boot.cli.seal import seal
from oci2boot.cli.sysupdate import sysupdate
from oci2boot.cli.upkeep import fsck, gc, reset
from oci2boot.cli.verify import verify
from oci2boot.errors import Error
from oci2boot.workflows.make.canonical import RULES

__all__ = ["app", "main"]

COMMANDS: Final[Mapping[str, tuple[Callable[..., None] | typer.Typer, ...]]] = {
    "From an image to a machine": (convert, install, build, seal, attach, keys.app, uki.app),
    "What it is, and whether it is intact": (lint, inspect, verify, test, digest, explain),
    "A machine that lives on": (
        *(status, upgrade, switch, rollback, pin, unpin, delete, finalize, kargs.app, etc_diff, reset),
    ),
    "The store": (images, pull, export, sysupdate, mount, fsck, gc),
    "Further commands": (config,),
}
"""As `--help` shows them: the order in which a newcomer meets them."""


def _print_version(wanted: bool) -> None:  # noqa: FBT001 Typer calls it
    if wanted:
        out.print(f"oci2boot {__version__} (experimental; digest rules {RULES}, EROFS formats 0, 1 and 2)")
        raise typer.Exit


@app.callback()
def _top(
    *,
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="OCI2BOOT_CONFIG", help="file with options: oci2boot.toml", show_default=False),
    ] = None,
    version: Annotated[  # noqa: ARG001 its callback prints it
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a container image into a machine that boots it, with a chain of trust from the firmware to every file."""
    if config is not None:
        context.default_map = read_config(config, app)


for _panel, _commands in COMMANDS.items():
    for _one in _commands:
        if isinstance(_one, typer.Typer):
            app.add_typer(_one, rich_help_panel=_panel)
        else:
            command(app, panel=_panel)(_one)


def main() -> None:
    """Run the command line; any failure that a user can meet is one sentence and status 1."""
    as_json = "--json" in sys.argv[1:]
    # A tree is a million objects without a cycle: looking for cycles in it costs a third of the time.
    gc_module.disable()
    try:
        app()
    except Error as error:
        show_error(error, as_json=as_json)
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        show_error(Error(f"{error.strerror or error}{where}"), as_json=as_json)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if stop := _stopped(ended):
            left = getattr(stop, "__notes__", ["nothing is half-written"])
            show_error(Error(f"stopped; {left[0]}"), as_json=as_json)
            sys.exit(130)
        raise


def _stopped(ended: BaseException | None) -> KeyboardInterrupt | None:
    """Return what typer made a silent exit of."""
    while ended is not None and not isinstance(ended, KeyboardInterrupt):
        ended = ended.__cause__ or ended.__context__
    return ended
