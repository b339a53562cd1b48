"""`oci2boot digest`: the digest alone."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from oci2boot.cli.groups import Only
from oci2boot.cli.options import For
from oci2boot.cli.output import Output, print_json
from oci2boot.workflows.make.consumers import settle
from oci2boot.workflows.make.digest import measure, write_initramfs
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import BootOptions, DigestRequest, Fetching, TreeOptions


def digest(
    *,
    request: DigestRequest,
    tree: TreeOptions,
    karg: Annotated[bool, Option("--karg", "print the kernel argument")] = False,
    boot: Annotated[BootOptions, Only("karg_style")],
    consumer: For = None,
    dumpfile: Annotated[bool, Option("--dumpfile", "print the tree as a composefs dump file")] = False,
    initramfs: Annotated[
        Path | None,
        Option(
            "--initramfs", "write an archive with the digest; append it to the initramfs of a boot chain without UKI"
        ),
    ] = None,
    fetching: Fetching,
    output: Output,
) -> None:
    """Print the digest of a root file system, and store nothing. Takes a directory, an image or a dump file."""
    with output.reporting() as report:
        algorithm, tree, boot = settle(consumer, request.hash if request.hash != "sha256" else None, tree, boot)
        asked = replace(request, hash=algorithm or request.hash, options=fetching.options(), tree=tree)
        measured = measure(asked, report)
    argument = measured.karg(boot.karg_style)
    if initramfs:
        write_initramfs(measured, initramfs)
    if dumpfile:
        sys.stdout.buffer.write(measured.dumpfile())
    elif output.as_json:
        print_json(measured.to_json() | {"karg": argument})
    else:
        sys.stdout.write((argument if karg else str(measured.rootfs.digest)) + "\n")
