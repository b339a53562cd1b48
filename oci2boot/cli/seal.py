"""`oci2boot seal`."""

from dataclasses import replace

from oci2boot.cli.options import BootableTree, For, Signing, Uki
from oci2boot.cli.output import Output, print_table
from oci2boot.workflows.make.asked import AskedDracut
from oci2boot.workflows.make.consumers import settle
from oci2boot.workflows.make.kernel_from import KernelFrom
from oci2boot.workflows.make.seal import SealedImage, SealRequest
from oci2boot.workflows.make.seal import seal as run_seal
from oci2boot.workflows.requests import Fetching, Linting


def seal(
    *,
    request: SealRequest,
    tree: BootableTree,
    uki: Uki,
    consumer: For = None,
    kernel_from: KernelFrom,
    dracut: AskedDracut,
    signing: Signing,
    linting: Linting,
    fetching: Fetching,
    output: Output,
) -> None:
    """Write an image that carries its UKI in an extra layer; the other layers stay as they are."""
    algorithm, tree, uki = settle(consumer, request.hash, tree, uki)
    request = replace(
        request,
        hash=algorithm,
        options=fetching.options(),
        tree=tree,
        boot=replace(uki, signing=signing, dracut=dracut.options(uki.initrd)),
        kernel_from=kernel_from,
        linting=linting,
    )
    with output.reporting() as report:
        sealed = run_seal(request, report)
    if sealed is not None:
        output.show(sealed, _show)


def _show(sealed: SealedImage) -> None:
    print_table(
        ("sealed" if sealed.written else "not written", sealed.destination),
        [
            ("manifest", str(sealed.manifest)),
            ("UKI", sealed.uki),
            *((("loader", ", ".join(sealed.loader)),) if sealed.loader else ()),
            ("layer", str(sealed.layer)),
            ("argument", sealed.karg),
        ],
    )
