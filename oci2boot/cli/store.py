"""`oci2boot pull` and `oci2boot mount`: the store by itself, without anything that boots."""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.options import (
    AllowMissingVerity,
    AsJson,
    Authfile,
    HashName,
    PlatformName,
    ProgressJson,
    Quiet,
    Repo,
    Source,
    TlsVerify,
    complete_name,
    repo_path,
    source_options,
)
from oci2boot.workflows.machine.mount import mount as run_mount
from oci2boot.workflows.make.pull import pull as run_pull
from oci2boot.workflows.requests import parse_source


def register(app: typer.Typer) -> None:
    app.command()(pull)
    app.command()(mount)


def pull(
    source: Source,
    name: Annotated[str | None, typer.Option("--name", help="what to call it", show_default=False)] = None,
    repo: Repo = None,
    hash_name: HashName = None,
    platform: PlatformName = None,
    tls_verify: TlsVerify = "true",
    authfile: Authfile = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch an image's layers into the store, and stop there: no rootfs image, no UKI. `convert` makes them later."""
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        pulled = run_pull(
            parse_source(source),
            repo_path(repo, writing=True),
            report,
            name=name,
            algorithm=hash_name,
            options=source_options(platform, tls_verify, authfile),
        )
    if as_json:
        output.print_json(pulled.to_json())
    else:
        output.print_facts([("pulled", pulled.name), ("manifest", str(pulled.manifest))])


def mount(
    image: Annotated[
        str,
        typer.Argument(
            help="a converted image, or the digest of a rootfs image", autocompletion=complete_name, show_default=False
        ),
    ],
    target: Annotated[Path, typer.Argument(help="a directory", show_default=False)],
    repo: Repo = None,
    allow_missing_verity: AllowMissingVerity = False,
    as_json: AsJson = False,
) -> None:
    """Mount a rootfs image of the store, read-only; the kernel checks every file as it is read. `umount` ends it."""
    digest = run_mount(repo_path(repo), image, target, allow_missing_verity=allow_missing_verity)
    if as_json:
        output.print_json({"digest": str(digest), "target": str(target)})
