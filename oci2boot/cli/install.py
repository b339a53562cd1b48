"""`oci2boot install`: onto a disk."""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.options import (
    AsJson,
    ProgressJson,
    Quiet,
    Repo,
    TlsVerify,
    complete_name,
    looks_like_a_source,
    parse_size,
    repo_path,
    source_options,
)
from oci2boot.errors import Error
from oci2boot.workflows.convert import convert as run_convert
from oci2boot.workflows.install import install as run_install
from oci2boot.workflows.manage import list_images
from oci2boot.workflows.requests import ConvertRequest, InstallRequest, parse_source


def register(app: typer.Typer) -> None:
    app.command()(install)


def install(
    image: Annotated[
        str | None,
        typer.Argument(
            help="a converted image, or a source to convert first; by default the image converted last",
            autocompletion=complete_name,
            show_default=False,
        ),
    ] = None,
    target: Annotated[Path, typer.Option("--target", help="the disk image to make", show_default=False)] = Path(),
    size: Annotated[str | None, typer.Option("--size", help="of the disk: 10G; by default what is needed")] = None,
    esp_size: Annotated[str | None, typer.Option("--esp-size", help="of the EFI system partition")] = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="replace a target that is there")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan, write nothing")] = False,
    repo: Repo = None,
    tls_verify: TlsVerify = "true",
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a converted image to a disk: partitions, boot loader, UKI, and every object under fs-verity."""
    if target == Path():
        raise Error("where should it go?", hint="name a disk image: --target disk.raw")
    path = repo_path(repo)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        if image and looks_like_a_source(image) and all(found.name != image for found in list_images(path)):
            converted = run_convert(
                ConvertRequest(parse_source(image), path, options=source_options(tls_verify=tls_verify)), report
            )
            image = converted.name
        request = InstallRequest(
            repo=path,
            target=target,
            name=image,
            size=parse_size(size) if size else None,
            esp_size=parse_size(esp_size) if esp_size else None,
            wipe=wipe,
        )
        installed = run_install(request, report, dry_run=dry_run)
    if as_json:
        output.print_json(installed.to_json())
    else:
        output.show_installed(installed)
