"""`oci2boot sysupdate`."""

from oci2boot.cli.output import Output, print_facts
from oci2boot.workflows.install.sysupdate import DEFINITIONS, Published, SysupdateRequest, publish


def sysupdate(*, request: SysupdateRequest, output: Output) -> None:
    """Write an image under dm-verity for machines that systemd-sysupdate updates: files and definitions."""
    with output.reporting() as report:
        published = publish(request, report)
    output.show(published, _show)


def _show(published: Published) -> None:
    print_facts(
        [
            ("version", published.version),
            ("files", ", ".join(published.files)),
            (f"definitions in {DEFINITIONS}/", ", ".join(published.definitions)),
        ]
    )
