"""`oci2boot explain`: why do two digests differ?"""

from pathlib import Path
from typing import Annotated

from rich.markup import escape

from oci2boot.cli.output import Output, out, print_facts, print_table
from oci2boot.workflows.images import image_names
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import Fetching, Repo
from oci2boot.workflows.verify.accepted import ExplainedUki, explain_uki
from oci2boot.workflows.verify.explain import Explained, ExplainRequest
from oci2boot.workflows.verify.explain import explain as run_explain

_A = "a digest, a kernel argument, a converted image, a source, a dump file, a rootfs image, a UKI, or a disk"


def explain(
    *,
    a: Annotated[str, Option("A", _A, complete=image_names)],
    b: Annotated[str | None, Option("B", "the other one; without it, A is a UKI", complete=image_names)] = None,
    limit: Annotated[int, Option("--limit", "how many differences to show", least=1)] = 20,
    repo: Repo,
    fetching: Fetching,
    output: Output,
) -> None:
    """Say why two digests differ: by which rules, or in which paths and fields; of one UKI, who would boot it."""
    if b is None:
        output.show(explain_uki(Path(a)), _show_uki)
        return
    with output.reporting() as report:
        explained = run_explain(ExplainRequest(a, b, repo, fetching.options(), limit), report)
    output.show(explained, _show)


def _show_uki(explained: ExplainedUki) -> None:
    print_facts([("UKI", str(explained.path)), ("glue", explained.glue or "none")])
    for arguments, accepted in explained.lines:
        out.print(arguments, markup=False, highlight=False, soft_wrap=True)
        rows = [(one.consumer, "boots" if one.boots else "does not boot", one.why) for one in accepted]
        print_table(("CONSUMER", "", "WHY"), rows)


def _show(explained: Explained) -> None:
    a, b = explained.a, explained.b
    sides = [
        (letter, f"{digest}  ({side.kind} {side.name})" if side.name != str(digest) else f"{digest}  (a digest)")
        for letter, side in (("A", a), ("B", b))
        for digest in side.digests
    ]
    print_facts(sides)
    match explained.verdict:
        case "equal":
            out.print("[bold green]equal[/]: both are the same root file system")
        case "rules":
            out.print("[bold]one tree, measured by different rules:[/]")
            print_table(("RULE", "A", "B"), explained.rules)
        case "content":
            out.print("[bold]the trees differ:[/]")
            rows = [(one.path, one.field, one.a, one.b) for one in explained.differences]
            print_table(("PATH", "FIELD", "A", "B"), rows)
            if explained.more:
                out.print(f"and {explained.more} more differences")
        case "unknown":
            known = a if a.bench else b
            out.print(
                f"[bold]another tree:[/] by none of {explained.tried} rule sets has {escape(known.name)} "
                "the other digest; name the tree of the other one to see where they differ"
            )
