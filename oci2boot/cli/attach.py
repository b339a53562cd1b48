"""`oci2boot attach`."""

from dataclasses import replace

from oci2boot.cli.options import JustJson
from oci2boot.cli.output import print_table
from oci2boot.workflows.make.published import Attached, AttachRequest
from oci2boot.workflows.make.published import attach as run_attach
from oci2boot.workflows.requests import Fetching


def attach(*, request: AttachRequest, fetching: Fetching, output: JustJson) -> None:
    """Put signatures made elsewhere beside an image, for machines that rebuild what was signed and have no key."""
    output.show(run_attach(replace(request, options=fetching.options())), _show)


def _show(attached: Attached) -> None:
    print_table(
        ("attached" if attached.written else "not attached", str(attached.artifact)),
        [
            ("image", f"{attached.image} ({attached.manifest})"),
            *((f"signature of {one.image}", one.name) for one in attached.signatures),
        ],
    )
