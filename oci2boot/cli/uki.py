"""`oci2boot uki`: unified kernel images and other EFI executables, one file at a time."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli.groups import Only, command
from oci2boot.cli.options import BootableTree, For, JustJson, JustQuiet, Shown, Signing, Uki
from oci2boot.cli.output import out, print_facts, print_json, show_inspected
from oci2boot.errors import Error
from oci2boot.workflows.keys import executables as workflow
from oci2boot.workflows.keys.executables import Executable, Signed
from oci2boot.workflows.make import uki_build, uki_config
from oci2boot.workflows.make.asked import AskedDracut
from oci2boot.workflows.make.consumers import settle
from oci2boot.workflows.make.kernel_from import KernelFrom
from oci2boot.workflows.make.uki_build import BuildRequest, BuiltUki
from oci2boot.workflows.make.uki_config import Configured
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import BootOptions, Linting, Repo
from oci2boot.workflows.verify.uki_objects import list_objects

app = typer.Typer(name="uki", no_args_is_help=True, help="Build, sign, verify and look into UKIs and addons.")
ADDON_STUB = Path("/usr/lib/systemd/boot/efi/addonx64.efi.stub")

File = Annotated[Path, Option("SOURCE", "a UKI, an addon or another EFI executable")]
Trusted = Annotated[
    tuple[Path, ...],
    Option("--db", "certificates, as in the firmware's db (PEM or DER); may be repeated"),
]


@command(app)
def sign(
    *,
    source: File,
    target: Annotated[Path | None, Option("--output", "the signed file", short="-o")] = None,
    signing: Signing,
    output: JustQuiet,
) -> None:
    """Add a signature. The same file and key always give the same bytes."""
    if signing is None:
        raise Error("who signs?", hint="name a certificate and a key: --secureboot-certificate, --secureboot-key")
    if target is None and signing.request is None:
        raise Error("where should the signed file go?", hint="name it by --output; it may be the same file")
    with output.reporting() as report:
        workflow.sign(source, target or source, signing, report)


@command(app)
def verify(*, source: File, trusted: Trusted = (), output: JustJson) -> None:
    """Check all signatures, and with --db that firmware with these certificates would start it."""
    output.show(workflow.verify(source, trusted), partial(_show_signed, asked=bool(trusted)))


def _show_signed(signed: Signed, *, asked: bool) -> None:
    for signature in signed.signatures:
        trust = f"trusted by {signature.trusted_by}" if signature.trusted_by else "not in --db" if asked else ""
        out.print(": ".join(part for part in (signature.signer, trust) if part), markup=False)


@command(app)
def inspect(*, source: File, trusted: Trusted = (), output: JustJson) -> None:
    """Show sections, command lines, what they promise, and who signed it."""
    output.show(workflow.describe(source, trusted), _show_executable)


def _show_executable(found: Executable) -> None:
    show_inspected({"name": found.path.name, **found.to_json()})


@command(app)
def objects(
    *,
    sources: Annotated[tuple[Path, ...], Option("SOURCES", "UKIs, or directories of them such as an ESP")],
    repo: Repo,
    output: JustJson,
) -> None:
    """List every object of the store that UKIs need: the rootfs images that they promise, and these images' files."""
    found = list_objects(sources, repo)
    if output.as_json:
        print_json([one.to_json() for one in found])
    else:
        for digest in sorted({str(digest) for one in found for digest in one.objects}):
            out.print(digest, markup=False, highlight=False, soft_wrap=True)


@command(app)
def build(
    *,
    request: BuildRequest,
    tree: BootableTree,
    uki: Uki,
    consumer: For = None,
    kernel_from: KernelFrom,
    dracut: AskedDracut,
    signing: Signing,
    linting: Linting,
    output: Shown,
) -> None:
    """Build the UKI that promises a root file system. In a Containerfile, mount the previous stage with --mount."""
    with output.reporting() as report:
        algorithm, tree, uki = settle(consumer, request.hash if request.hash != "sha256" else None, tree, uki)
        boot = replace(uki, signing=signing, dracut=dracut.options(uki.initrd))
        asked = replace(
            request, hash=algorithm or request.hash, tree=tree, boot=boot, kernel_from=kernel_from, linting=linting
        )
        built = uki_build.build(asked, report)
    output.show(built, _show_built)


def _show_built(built: BuiltUki) -> None:
    show_inspected({"name": str(built.path), **built.to_json()})


@command(app)
def config(
    *,
    request: Annotated[BuildRequest, Only("rootfs", "hash", "platform")],
    target: Annotated[Path, Option("--output", "folder where kernel-install looks", short="-o")] = Path("/etc/kernel"),
    tree: BootableTree,
    boot: Annotated[BootOptions, Only("kargs", "karg_style", "kernel", "console", "both_hashes")],
    kernel_from: Annotated[KernelFrom, Only("root")],
    output: Shown,
) -> None:
    """Have kernel-install and ukify build the UKI that promises a root file system.

    Writes cmdline, install.conf, uki.conf and a plugin that adds what the initramfs lacks. They belong into the build
    stage that runs `kernel-install add` and is thrown away: in the image itself they would change what is promised.
    """
    with output.reporting() as report:
        configured = uki_config.configure(
            replace(request, tree=tree, boot=boot, kernel_from=kernel_from), target, report
        )
    output.show(configured, _show_configured)


def _show_configured(configured: Configured) -> None:
    print_facts([("written", str(configured.folder)), ("command line", configured.cmdline)])


@command(app)
def addon(
    *,
    cmdline: Annotated[str, Option("--cmdline", "kernel arguments to add")],
    uname: Annotated[str, Option("--uname", "version of the kernel that the addon is for")],
    target: Annotated[Path, Option("--output", "NAME.addon.efi", short="-o")],
    stub: Annotated[Path, Option("--stub", "systemd's addon stub")] = ADDON_STUB,
    force: Annotated[bool, Option("--force", "allow arguments that decide what is booted")] = False,
    signing: Signing,
    output: JustQuiet,
) -> None:
    """Build an addon: kernel arguments for signed UKIs that stay as they are, as UKI.efi.extra.d/NAME.addon.efi."""
    with output.reporting() as report:
        uki_build.write_addon(stub, cmdline, uname, target, signing, report, force=force)
