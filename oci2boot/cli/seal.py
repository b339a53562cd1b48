"""`oci2boot seal`."""

from typing import Annotated

import typer

from oci2boot.cli import output, signing
from oci2boot.cli.options import (
    AsJson,
    Authfile,
    ErofsVersion,
    HashName,
    Kargs,
    KargStyle,
    Kver,
    PlatformName,
    ProgressJson,
    Quiet,
    Repo,
    SelinuxRules,
    Source,
    TlsVerify,
    Ukify,
    UkiLimit,
    Xattrs,
    parse_size,
    repo_path,
    source_options,
)
from oci2boot.oci.reference import Reference
from oci2boot.workflows.make.seal import SealedImage
from oci2boot.workflows.make.seal import seal as run_seal
from oci2boot.workflows.requests import BootOptions, SealRequest, TreeOptions, parse_source

Destination = Annotated[
    str, typer.Argument(help="REGISTRY/REPO:TAG (or with docker://), oci:DIR:TAG, oci-archive:FILE", show_default=False)
]


def register(app: typer.Typer) -> None:
    app.command()(seal)


def seal(
    source: Source,
    destination: Destination,
    repo: Repo = None,
    hash_name: HashName = None,
    erofs_version: ErofsVersion = 1,
    selinux_rules: SelinuxRules = "libselinux",
    xattrs: Xattrs = "allowlist-only",
    karg: Kargs = None,
    karg_style: KargStyle = "composefs",
    kver: Kver = None,
    ukify: Ukify = "auto",
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    sign_command: signing.SignCommand = None,
    signtool: signing.SignTool = None,
    pkcs11_module: signing.Pkcs11Module = None,
    sign_request: signing.SignRequest = None,
    sign_response: signing.SignResponse = None,
    uki_limit: UkiLimit = None,
    ship_erofs: Annotated[
        bool, typer.Option("--ship-erofs", help="put the rootfs image into the image, beside the UKI")
    ] = False,
    strip_kernel: Annotated[
        bool, typer.Option("--strip-kernel", help="remove kernel and initramfs from /usr: they are in the UKI")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would be, write no image")] = False,
    platform: PlatformName = None,
    tls_verify: TlsVerify = "true",
    authfile: Authfile = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an image that carries its UKI, in a layer of its own over the image's, which stay as they are."""
    request = SealRequest(
        source=parse_source(source),
        destination=Reference.parse(destination),
        repo=repo_path(repo, writing=True),
        hash=hash_name,
        options=source_options(platform, tls_verify, authfile),
        tree=TreeOptions(bootable=True, selinux_rules=selinux_rules, xattrs=xattrs, erofs_version=erofs_version),
        boot=BootOptions(
            kernel=kver,
            kargs=tuple(karg or ()),
            karg_style=karg_style,
            ukify=ukify,
            signing=signing.signing_options(
                key, certificate, passphrase, sign_command, signtool, pkcs11_module, sign_request, sign_response
            ),
            size_limit=parse_size(uki_limit) if uki_limit else None,
        ),
        ship_erofs=ship_erofs,
        strip_kernel=strip_kernel,
        dry_run=dry_run,
    )
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        sealed = run_seal(request, report)
    if sealed is None:
        return
    if as_json:
        output.print_json(sealed.to_json())
    else:
        _show(sealed)


def _show(sealed: SealedImage) -> None:
    output.print_table(
        ("sealed" if sealed.written else "not written", sealed.destination),
        [
            ("manifest", str(sealed.manifest)),
            ("UKI", sealed.uki),
            ("layer", str(sealed.layer)),
            ("argument", sealed.karg),
        ],
    )
