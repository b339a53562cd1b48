"""`oci2boot sysupdate`: words to a request, the result to words."""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.options import AsJson, ProgressJson, Quiet, Repo, complete_name, repo_path
from oci2boot.workflows.install.sysupdate import DEFINITIONS, Packing, Suffix, SysupdateRequest, publish


def register(app: typer.Typer) -> None:
    app.command()(sysupdate)


def sysupdate(
    directory: Annotated[Path, typer.Argument(help="where the files go; those of other versions stay")],
    source: Annotated[
        str,
        typer.Option(
            "--source", metavar="URL|DIR", help="where machines find the files: https://…", show_default=False
        ),
    ],
    image: Annotated[
        str | None,
        typer.Option("--image", help="a converted image", autocompletion=complete_name, show_default=False),
    ] = None,
    packing: Annotated[Packing, typer.Option("--packing", help="of what goes into partitions")] = "xz",
    suffix: Annotated[
        Suffix, typer.Option("--suffix", help="of the definitions; before systemd 257 it is conf")
    ] = "transfer",
    repo: Repo = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an image under dm-verity for machines that are updated by systemd-sysupdate: files and definitions."""
    request = SysupdateRequest(repo_path(repo), image, directory, source, packing, suffix)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        done = publish(request, report)
    if as_json:
        output.print_json(done.to_json())
        return
    output.print_facts(
        [
            ("version", done.version),
            ("files", ", ".join(done.files)),
            (f"definitions in {DEFINITIONS}/", ", ".join(done.definitions)),
        ]
    )
