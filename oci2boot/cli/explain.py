"""`oci2boot explain`: why do two digests differ?"""

from typing import Annotated

import typer
from rich.markup import escape

from oci2boot.cli import output
from oci2boot.cli.options import (
    AsJson,
    Authfile,
    PlatformName,
    ProgressJson,
    Quiet,
    Repo,
    TlsVerify,
    complete_name,
    repo_path,
    source_options,
)
from oci2boot.workflows.verify.explain import Explained, ExplainRequest
from oci2boot.workflows.verify.explain import explain as run_explain

_HELP = "a digest, a kernel argument, a converted image, a source, a dump file, a rootfs image, a UKI, or a disk"


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    a: Annotated[str, typer.Argument(help=_HELP, autocompletion=complete_name, show_default=False)],
    b: Annotated[str, typer.Argument(help="the other one", autocompletion=complete_name, show_default=False)],
    limit: Annotated[int, typer.Option("--limit", help="differences to show", min=1)] = 20,
    repo: Repo = None,
    platform: PlatformName = None,
    tls_verify: TlsVerify = "true",
    authfile: Authfile = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Say why two digests differ: by which rules, or in which paths and fields."""
    request = ExplainRequest(a, b, repo_path(repo), source_options(platform, tls_verify, authfile), limit)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        explained = run_explain(request, report)
    if as_json:
        output.print_json(explained.to_json())
    else:
        show_explained(explained)


def show_explained(explained: Explained) -> None:
    a, b = explained.a, explained.b
    sides = [
        (letter, f"{digest}  ({side.kind} {side.name})" if side.name != str(digest) else f"{digest}  (a digest)")
        for letter, side in (("A", a), ("B", b))
        for digest in side.digests
    ]
    output.print_facts(sides)
    match explained.verdict:
        case "equal":
            output.out.print("[bold green]equal[/]: both are the same root file system")
        case "rules":
            output.out.print("[bold]one tree, measured by different rules:[/]")
            output.print_table(("RULE", "A", "B"), explained.rules)
        case "content":
            output.out.print("[bold]the trees differ:[/]")
            rows = [(one.path, one.field, one.a, one.b) for one in explained.differences]
            output.print_table(("PATH", "FIELD", "A", "B"), rows)
            if explained.more:
                output.out.print(f"and {explained.more} more differences")
        case "unknown":
            known = a if a.bench else b
            output.out.print(
                f"[bold]another tree:[/] by none of {explained.tried} rule sets has {escape(known.name)} "
                "the other digest; name the tree of the other one to see where they differ"
            )
