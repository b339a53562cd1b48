"""`oci2boot uki`: unified kernel images and other EFI executables, one file at a time."""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output, signing
from oci2boot.cli.options import (
    AsJson,
    ErofsVersion,
    HashName,
    Kargs,
    KargStyle,
    Kver,
    PlatformName,
    Quiet,
    Repo,
    SelinuxRules,
    Ukify,
    UkiLimit,
    Xattrs,
    parse_size,
    repo_path,
)
from oci2boot.errors import Error
from oci2boot.oci.manifest import Platform
from oci2boot.workflows.keys import executables as workflow
from oci2boot.workflows.make import uki_build, uki_config
from oci2boot.workflows.requests import BootOptions, TreeOptions
from oci2boot.workflows.verify.uki_objects import list_objects

app = typer.Typer(name="uki", no_args_is_help=True, help="Build, sign, verify and look into UKIs and addons.")
ADDON_STUB = Path("/usr/lib/systemd/boot/efi/addonx64.efi.stub")

Executable = Annotated[Path, typer.Argument(help="a UKI, an addon or another EFI executable", show_default=False)]
Trusted = Annotated[
    list[Path] | None,
    typer.Option(
        "--db", help="certificates, as in the firmware's db (PEM or DER); may be repeated", show_default=False
    ),
]


@app.command()
def sign(
    source: Executable,
    target: Annotated[Path | None, typer.Option("--output", "-o", help="the signed file", show_default=False)] = None,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    command: signing.SignCommand = None,
    tool: signing.SignTool = None,
    module: signing.Pkcs11Module = None,
    request: signing.SignRequest = None,
    response: signing.SignResponse = None,
    quiet: Quiet = False,
) -> None:
    """Add a signature. The same file and key always give the same bytes."""
    options = signing.signing_options(key, certificate, passphrase, command, tool, module, request, response)
    if options is None:
        raise Error("who signs?", hint="name a certificate and a key: --secureboot-certificate, --secureboot-key")
    if target is None and request is None:
        raise Error("where should the signed file go?", hint="name it by --output; it may be the same file")
    with output.reporting(quiet=quiet) as report:
        workflow.sign(source, target or source, options, report)


@app.command()
def verify(source: Executable, trusted: Trusted = None, as_json: AsJson = False) -> None:
    """Check all signatures, and with --db that firmware with these certificates would start it."""
    found = workflow.verify(source, trusted or [])
    if as_json:
        output.print_json({"signatures": found})
        return
    for signature in found:
        trust = f"trusted by {signature['trusted_by']}" if signature["trusted_by"] else "not in --db" if trusted else ""
        output.out.print(": ".join(part for part in (signature["signer"], trust) if part), markup=False)


@app.command()
def inspect(source: Executable, trusted: Trusted = None, as_json: AsJson = False) -> None:
    """Show sections, command lines, what they promise, and who signed it."""
    found = workflow.describe(source, trusted or [])
    if as_json:
        output.print_json(found)
    else:
        output.show_inspected({"name": source.name, **found})


@app.command()
def objects(
    sources: Annotated[
        list[Path], typer.Argument(help="UKIs, or directories of them such as an ESP", show_default=False)
    ],
    repo: Repo = None,
    as_json: AsJson = False,
) -> None:
    """List every object of the store that UKIs need: the rootfs images that they promise, and these images' files."""
    found = list_objects(sources, repo_path(repo))
    if as_json:
        output.print_json([one.to_json() for one in found])
    else:
        for digest in sorted({str(digest) for one in found for digest in one.objects}):
            output.out.print(digest, markup=False, highlight=False, soft_wrap=True)


@app.command()
def build(
    rootfs: Annotated[
        Path, typer.Option("--rootfs", help="the root file system, with kernel and initramfs", show_default=False)
    ],
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="a file or directory; boot/EFI/Linux of the root", show_default=False),
    ] = None,
    hash_name: HashName = None,
    erofs_version: ErofsVersion = 1,
    selinux_rules: SelinuxRules = "libselinux",
    xattrs: Xattrs = "allowlist-only",
    karg: Kargs = None,
    karg_style: KargStyle = "composefs",
    kver: Kver = None,
    ukify: Ukify = "auto",
    uki_limit: UkiLimit = None,
    platform: PlatformName = None,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    command: signing.SignCommand = None,
    tool: signing.SignTool = None,
    module: signing.Pkcs11Module = None,
    request: signing.SignRequest = None,
    response: signing.SignResponse = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build the UKI that promises a root file system: in a Containerfile, of the stage before, mounted by --mount."""
    options = signing.signing_options(key, certificate, passphrase, command, tool, module, request, response)
    with output.reporting(quiet=quiet) as report:
        built = uki_build.build(
            uki_build.BuildRequest(
                rootfs=rootfs,
                output=target,
                hash=hash_name or "sha256",
                architecture=Platform.parse(platform).architecture if platform else None,
                tree=TreeOptions(
                    bootable=True, selinux_rules=selinux_rules, xattrs=xattrs, erofs_version=erofs_version
                ),
                boot=BootOptions(
                    kernel=kver,
                    kargs=tuple(karg or ()),
                    karg_style=karg_style,
                    ukify=ukify,
                    signing=options,
                    size_limit=parse_size(uki_limit) if uki_limit else None,
                ),
            ),
            report,
        )
    if as_json:
        output.print_json(built.to_json())
    else:
        output.show_inspected({"name": str(built.path), **built.to_json()})


@app.command()
def config(
    rootfs: Annotated[
        Path, typer.Option("--rootfs", help="the root file system, with kernel and initramfs", show_default=False)
    ],
    target: Annotated[Path, typer.Option("--output", "-o", help="where kernel-install looks")] = Path("/etc/kernel"),
    hash_name: HashName = None,
    erofs_version: ErofsVersion = 1,
    selinux_rules: SelinuxRules = "libselinux",
    xattrs: Xattrs = "allowlist-only",
    karg: Kargs = None,
    karg_style: KargStyle = "composefs",
    kver: Kver = None,
    platform: PlatformName = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Have kernel-install and ukify build the UKI that promises a root file system.

    Writes cmdline, install.conf, uki.conf and a plugin that adds what the initramfs lacks. They belong into the build
    stage that runs `kernel-install add` and is thrown away: in the image itself they would change what is promised.
    """
    with output.reporting(quiet=quiet) as report:
        configured = uki_config.configure(
            uki_build.BuildRequest(
                rootfs=rootfs,
                hash=hash_name or "sha256",
                architecture=Platform.parse(platform).architecture if platform else None,
                tree=TreeOptions(
                    bootable=True, selinux_rules=selinux_rules, xattrs=xattrs, erofs_version=erofs_version
                ),
                boot=BootOptions(kernel=kver, kargs=tuple(karg or ()), karg_style=karg_style),
            ),
            target,
            report,
        )
    if as_json:
        output.print_json(configured.to_json())
    else:
        output.print_facts([("written", str(configured.folder)), ("command line", configured.cmdline)])


@app.command()
def addon(
    cmdline: Annotated[str, typer.Option("--cmdline", help="kernel arguments to append", show_default=False)],
    uname: Annotated[str, typer.Option("--uname", help="version of the kernel that it is for", show_default=False)],
    target: Annotated[Path, typer.Option("--output", "-o", help="NAME.addon.efi", show_default=False)],
    stub: Annotated[Path, typer.Option("--stub", help="systemd's addon stub")] = ADDON_STUB,
    force: Annotated[bool, typer.Option("--force", help="take arguments that decide what is booted")] = False,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    command: signing.SignCommand = None,
    tool: signing.SignTool = None,
    module: signing.Pkcs11Module = None,
    request: signing.SignRequest = None,
    response: signing.SignResponse = None,
    quiet: Quiet = False,
) -> None:
    """Build an addon: kernel arguments for signed UKIs that stay as they are, as UKI.efi.extra.d/NAME.addon.efi."""
    options = signing.signing_options(key, certificate, passphrase, command, tool, module, request, response)
    with output.reporting(quiet=quiet) as report:
        uki_build.write_addon(stub, cmdline, uname, target, options, report, force=force)
