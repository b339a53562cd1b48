"""What an image or a tree may be named by on the command line."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

from oci2boot.errors import FormatError
from oci2boot.oci.local import recognize
from oci2boot.oci.reference import Reference
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Told

TRANSPORTS: Final = (
    *("docker", "oci", "oci-archive", "docker-archive", "containers-storage", "dir", "tar", "dumpfile"),
)


def parse_source(text: str) -> Reference:
    """Take a source as people type it; what exists as a path is that, whatever else the word could mean."""
    transport, colon, _ = text.partition(":")
    if text == "-" or (colon and transport in TRANSPORTS):
        return Reference.parse(text)
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if text and exists(path):
        with suppress(FormatError):
            return replace(recognize(path), registry_name=str(Reference.parse(text)))
        return recognize(path)
    if text.startswith(("/", "./", "../", "~/")) or text in (".", ".."):
        raise FormatError(f"nothing is at {text}", hint="is the name right? an image of a layout is oci:DIR:TAG")
    return Reference.parse(text)


def tell_path(reference: Reference, report: Report) -> None:
    """Name the image of a registry that a path given without a transport could have meant."""
    if reference.registry_name:
        report(Told(f"{reference} is what lies here; {reference.registry_name} would be the image of a registry"))


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def is_source(text: str) -> bool:
    """Tell a source from a name: `install demo` must not ask a registry on the internet for library/demo."""
    return "/" in text or text.partition(":")[0] in TRANSPORTS or exists(Path(text))


Source = Annotated[
    Reference,
    Option(
        "SOURCE",
        "REGISTRY/REPO:TAG (or with docker://), oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], "
        "containers-storage:NAME, dir:ROOTFS, tar:FILE, dumpfile:FILE; a path, which is what its content says; "
        "- for a tar or an archive on standard input",
        parse=parse_source,
    ),
]
Destination = Annotated[
    Reference,
    Option(
        "DESTINATION", "REGISTRY/REPO:TAG (or with docker://), oci:DIR:TAG, oci-archive:FILE", parse=Reference.parse
    ),
]
