"""`oci2boot convert` and `oci2boot pull`: from where images come into the store."""

from dataclasses import replace
from typing import Annotated

from rich.markup import escape

from oci2boot.cli.options import AttestHook, Signing
from oci2boot.cli.output import Output, out, print_facts, size
from oci2boot.errors import Error
from oci2boot.workflows.images import Bootable, DmVerityRoot, Mode
from oci2boot.workflows.make.asked import AskedDracut, AskedVerity, RootSigner
from oci2boot.workflows.make.convert import convert as run_convert
from oci2boot.workflows.make.pull import Pulled
from oci2boot.workflows.make.pull import pull as run_pull
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import (
    BootOptions,
    ConvertRequest,
    Fetching,
    Linting,
    Name,
    NewHash,
    NewRepo,
    TreeOptions,
)
from oci2boot.workflows.sources import Source
from oci2boot.workflows.verify.inspect import measured_manifest


def convert(
    *,
    request: ConvertRequest,
    tree: TreeOptions,
    make_boot: Annotated[bool, Option("--boot/--no-boot", "make the UKI, or stop after the digest")] = True,
    boot: BootOptions,
    dracut: AskedDracut,
    signing: Signing,
    mode: Annotated[
        Mode,
        Option(
            "--mode",
            "composefs: fs-verity guards each file, on a file system that can be written; "
            "verity: dm-verity guards one read-only EROFS partition",
        ),
    ] = "composefs",
    verity: AskedVerity,
    root_signer: RootSigner | None,
    attest_hook: AttestHook = None,
    linting: Linting,
    fetching: Fetching,
    output: Output,
) -> None:
    """Fetch an image into the store, compute its digest and build what boots it."""
    boot = replace(boot, dracut=dracut.options(boot.initrd), signing=signing)
    request = replace(
        request,
        options=fetching.options(),
        tree=tree,
        boot=boot if make_boot and tree.bootable else None,
        verity=verity.options(mode),
        root_signing=root_signer.options() if root_signer else signing,
        linting=linting,
    )
    if boot.db and request.boot is None:
        raise Error("--db is about what boots, and nothing that boots is made", hint="leave --db or --no-boot out")
    with output.reporting() as report:
        converted = run_convert(request, report)
    if attest_hook is not None:
        measured_manifest(converted.name, request.repo, attest_hook)
    output.show(converted, show_bootable)


def show_bootable(bootable: Bootable) -> None:
    facts = [
        ("image", bootable.name),
        ("system", f"{bootable.title} ({bootable.architecture})"),
        ("digest", f"{bootable.root.image.algorithm}:{bootable.root.image}"),
    ]
    if isinstance(verity := bootable.root, DmVerityRoot):
        signed = ", signed" if verity.signature_object else ""
        sizes = f"{size(verity.data_size)} of {size(verity.raw_size)}, {verity.ratio:.0%}"
        facts += [
            ("root hash", f"{verity.root_hash}{signed}" if verity.root_hash else "none: nothing guards it"),
            ("EROFS", f"{sizes} ({verity.compression})"),
        ]
    if bootable.kernel:
        facts += [("kernel", bootable.kernel), ("command line", bootable.cmdline or "")]
        facts += [("boot files", ", ".join(sorted(bootable.esp)))]
        facts += [("sizes", ", ".join(f"{name} {size(number)}" for name, number in bootable.sizes.items() if number))]
    print_facts(facts)
    if bootable.kernel:
        out.print(f"[dim]next: oci2boot install {escape(bootable.name)} --target disk.raw[/]")


def pull(
    *, source: Source, name: Name = None, repo: NewRepo, algorithm: NewHash = None, fetching: Fetching, output: Output
) -> None:
    """Fetch an image's layers into the store, and stop there: no rootfs image, no UKI. `convert` makes them later."""
    with output.reporting() as report:
        pulled = run_pull(source, repo, report, name=name, algorithm=algorithm, options=fetching.options())
    output.show(pulled, _show_pulled)


def _show_pulled(pulled: Pulled) -> None:
    print_facts([("pulled", pulled.name), ("manifest", str(pulled.manifest))])
