"""`oci2boot export`: words to a request, the result to words."""

from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.options import (
    AsJson,
    Authfile,
    ProgressJson,
    Quiet,
    Repo,
    TlsVerify,
    complete_name,
    repo_path,
    source_options,
)
from oci2boot.oci.reference import Reference
from oci2boot.workflows.make.export import export as run_export


def register(app: typer.Typer) -> None:
    app.command()(export)


def export(
    image: Annotated[str, typer.Argument(help="a converted image", autocompletion=complete_name, show_default=False)],
    destination: Annotated[
        str, typer.Argument(help="REGISTRY/REPO:TAG, oci:DIR:TAG or oci-archive:FILE", show_default=False)
    ],
    repo: Repo = None,
    tls_verify: TlsVerify = "true",
    authfile: Authfile = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an image out of the store: each layer's tar byte for byte, uncompressed."""
    options = source_options(tls_verify=tls_verify, authfile=authfile)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        exported = run_export(repo_path(repo), image, Reference.parse(destination), options, report)
    if as_json:
        output.print_json(exported.to_json())
    else:
        rows = [("manifest", str(exported.manifest)), ("layers", str(exported.layers))]
        output.print_table(("exported", exported.destination), rows)
