"""The command line: it only translates. Words to a request, a result to words, an `Error` to one line and status 1."""

import gc as gc_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from oci2boot import __version__
from oci2boot.cli import dracut, output, seal, signing
from oci2boot.cli import keys as key_commands
from oci2boot.cli import uki as uki_commands
from oci2boot.cli import verity_options as dm_verity
from oci2boot.cli.boot_test import register as register_test
from oci2boot.cli.config import read_config
from oci2boot.cli.config import register as register_config
from oci2boot.cli.day2 import register as register_day2
from oci2boot.cli.etc import register as register_etc
from oci2boot.cli.explain import register as register_explain
from oci2boot.cli.export import register as register_export
from oci2boot.cli.install import register as register_install
from oci2boot.cli.kargs import register as register_kargs
from oci2boot.cli.options import (
    AllowMissingVerity,
    AsJson,
    AttestHook,
    Authfile,
    Bootable,
    Console,
    Db,
    ErofsVersion,
    Flow,
    HashName,
    Initrd,
    InitrdTools,
    Kargs,
    KargStyle,
    Kver,
    LoaderName,
    PlatformName,
    ProgressJson,
    Quiet,
    Repo,
    SecureBootEnroll,
    SelinuxRules,
    Source,
    Timeout,
    TlsVerify,
    Ukify,
    UkiLayer,
    UkiLimit,
    UkiName,
    Xattrs,
    complete_name,
    parse_size,
    repo_path,
    source_options,
)
from oci2boot.cli.panels import arrange
from oci2boot.cli.store import register as register_store
from oci2boot.cli.sysupdate import register as register_sysupdate
from oci2boot.cli.upkeep import register as register_upkeep
from oci2boot.cli.verify import register as register_verify
from oci2boot.errors import Error
from oci2boot.workflows.images import forget, list_images
from oci2boot.workflows.make.canonical import RULES
from oci2boot.workflows.make.convert import convert as run_convert
from oci2boot.workflows.make.digest import measure, write_initramfs
from oci2boot.workflows.make.initramfs import dracut_options
from oci2boot.workflows.requests import (
    BootOptions,
    ConvertRequest,
    DigestRequest,
    TreeOptions,
    parse_source,
)
from oci2boot.workflows.verify.inspect import inspect as run_inspect
from oci2boot.workflows.verify.inspect import measured_manifest

app = typer.Typer(
    name="oci2boot",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(uki_commands.app)
app.add_typer(key_commands.app)
seal.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.out.print(f"oci2boot {__version__} (experimental; digest rules {RULES}, EROFS formats 0, 1 and 2)")
        raise typer.Exit


@app.callback()
def _top(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="OCI2BOOT_CONFIG", help="a file with options: oci2boot.toml", show_default=False
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a container image into a machine that boots it, with a chain of trust from the firmware to every file."""
    if config is not None:
        context.default_map = read_config(config, app)


@app.command()
def convert(
    source: Source,
    name: Annotated[str | None, typer.Option("--name", help="what to call it", show_default=False)] = None,
    repo: Repo = None,
    hash_name: HashName = None,
    erofs_version: ErofsVersion = 1,
    selinux_rules: SelinuxRules = "libselinux",
    xattrs: Xattrs = "allowlist-only",
    karg: Kargs = None,
    karg_style: KargStyle = "composefs",
    kver: Kver = None,
    ukify: Ukify = "auto",
    flow: Flow = "auto",
    uki: UkiName = None,
    uki_layer: UkiLayer = None,
    uki_limit: UkiLimit = None,
    initrd: Initrd = "image",
    initrd_tool: InitrdTools = None,
    dracut_install: dracut.Install = None,
    dracut_add_driver: dracut.AddDrivers = None,
    dracut_force_driver: dracut.ForceDrivers = None,
    dracut_module: dracut.Modules = None,
    dracut_filesystem: dracut.FileSystems = None,
    allow_missing_verity: AllowMissingVerity = False,
    db: Db = None,
    loader: LoaderName = "systemd-boot",
    timeout: Timeout = 3,
    secure_boot_enroll: SecureBootEnroll = None,
    console: Console = None,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    sign_command: signing.SignCommand = None,
    signtool: signing.SignTool = None,
    pkcs11_module: signing.Pkcs11Module = None,
    sign_request: signing.SignRequest = None,
    sign_response: signing.SignResponse = None,
    mode: dm_verity.Mode = "composefs",
    compression: dm_verity.CompressionName = None,
    verity: dm_verity.Verity = None,
    verity_hash: dm_verity.VerityHash = None,
    verity_salt: dm_verity.VeritySalt = None,
    verity_blocks: dm_verity.VerityBlocks = None,
    verity_embedded: dm_verity.VerityEmbedded = None,
    verity_karg: dm_verity.VerityKarg = None,
    verity_option: dm_verity.VerityOption = None,
    overlay: dm_verity.Overlays = None,
    verity_signature: dm_verity.VeritySignature = None,
    verity_key: dm_verity.VerityKey = None,
    verity_certificate: dm_verity.VerityCertificate = None,
    verity_passphrase: dm_verity.VerityPassphrase = None,
    boot: Annotated[bool, typer.Option("--boot/--no-boot", help="make the UKI; else stop after the digest")] = True,
    bootable: Bootable = True,
    attest_hook: AttestHook = None,
    platform: PlatformName = None,
    tls_verify: TlsVerify = "true",
    authfile: Authfile = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch an image into the store, compute its digest and build what boots it."""
    signs = signing.signing_options(
        key, certificate, passphrase, sign_command, signtool, pkcs11_module, sign_request, sign_response
    )
    request = ConvertRequest(
        source=parse_source(source),
        repo=repo_path(repo, writing=True),
        name=name,
        hash=hash_name,
        options=source_options(platform, tls_verify, authfile),
        tree=TreeOptions(bootable, selinux_rules, xattrs, erofs_version),
        boot=BootOptions(
            kver,
            tuple(karg or ()),
            karg_style,
            ukify,
            flow,
            uki,
            allow_missing_verity,
            signs,
            tuple(db or ()),
            loader,
            timeout,
            secure_boot_enroll,
            console,
            parse_size(uki_limit) if uki_limit else None,
            initrd,
            tuple(initrd_tool or ()),
            dracut_options(
                initrd, dracut_install, dracut_add_driver, dracut_force_driver, dracut_module, dracut_filesystem
            ),
        )
        if boot and bootable
        else None,
        uki_layer=uki_layer,
        verity=dm_verity.verity_options(
            mode,
            compression,
            verity,
            verity_hash,
            verity_salt,
            verity_blocks,
            verity_embedded,
            verity_karg,
            verity_option,
            overlay,
            verity_signature,
        ),
        root_signing=dm_verity.root_signing(verity_key, verity_certificate, verity_passphrase, signs),
    )
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        converted = run_convert(request, report)
    if attest_hook is not None:
        measured_manifest(converted.name, request.repo, attest_hook)
    if as_json:
        output.print_json(converted.to_json())
    else:
        output.show_bootable(converted)


register_install(app)
register_store(app)


@app.command()
def digest(
    source: Source,
    hash_name: HashName = None,
    erofs_version: ErofsVersion = 1,
    bootable: Bootable = True,
    karg: Annotated[bool, typer.Option("--karg", help="print the kernel argument")] = False,
    karg_style: KargStyle = "composefs",
    dumpfile: Annotated[bool, typer.Option("--dumpfile", help="print the tree as a composefs dump file")] = False,
    initramfs: Annotated[
        Path | None,
        typer.Option(
            "--initramfs",
            help="write an archive with the digest, to follow the initramfs of a boot chain without UKI",
            show_default=False,
        ),
    ] = None,
    selinux_rules: SelinuxRules = "libselinux",
    xattrs: Xattrs = "allowlist-only",
    uki_layer: UkiLayer = None,
    platform: PlatformName = None,
    tls_verify: TlsVerify = "true",
    authfile: Authfile = None,
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Print the digest of a root file system, and store nothing. Takes a directory, an image or a dump file."""
    request = DigestRequest(
        source=parse_source(source),
        hash=hash_name or "sha256",
        options=source_options(platform, tls_verify, authfile),
        tree=TreeOptions(bootable, selinux_rules, xattrs, erofs_version),
        uki_layer=uki_layer,
    )
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        measured = measure(request, report)
    argument = measured.karg(karg_style)
    if initramfs:
        write_initramfs(measured, initramfs)
    if dumpfile:
        sys.stdout.buffer.write(measured.dumpfile())
    elif as_json:
        output.print_json(measured.to_json() | {"karg": argument})
    else:
        sys.stdout.write((argument if karg else str(measured.rootfs.digest)) + "\n")


@app.command()
def inspect(
    image: Annotated[
        str, typer.Argument(help="a converted image, or a source", autocompletion=complete_name, show_default=False)
    ],
    repo: Repo = None,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="print every path of a converted image, for `verify --against`")
    ] = False,
    attest_hook: AttestHook = None,
    platform: PlatformName = None,
    tls_verify: TlsVerify = "true",
    authfile: Authfile = None,
    as_json: AsJson = False,
) -> None:
    """Say what an image is, without fetching its layers."""
    if manifest or attest_hook is not None:
        found = measured_manifest(image, repo_path(repo), attest_hook).to_json()
        if manifest:
            output.print_json(found)
            return
    found = run_inspect(image, repo_path(repo), source_options(platform, tls_verify, authfile)).to_json()
    if as_json:
        output.print_json(found)
    else:
        output.show_inspected(found)


@app.command()
def images(
    remove: Annotated[
        str | None, typer.Option("--remove", help="forget an image; gc frees it", autocompletion=complete_name)
    ] = None,
    repo: Repo = None,
    as_json: AsJson = False,
) -> None:
    """List the converted images, the last one first."""
    if remove is not None:
        forget(repo_path(repo, writing=True), remove)
    found = list_images(repo_path(repo))
    if as_json:
        output.print_json([image.to_json() for image in found])
    else:
        output.show_images(found)


register_upkeep(app)
register_day2(app)
register_kargs(app)
register_verify(app)
register_test(app)
register_explain(app)
register_export(app)
register_sysupdate(app)
register_config(app)
register_etc(app)
arrange(app)


def main() -> None:
    """Run the command line; any failure that a user can meet is one sentence and status 1."""
    as_json = "--json" in sys.argv[1:]
    # A tree is a million objects without a cycle: looking for cycles in it costs a third of the time.
    gc_module.disable()
    try:
        app()
    except Error as error:
        output.show_error(error, as_json=as_json)
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        output.show_error(Error(f"{error.strerror or error}{where}"), as_json=as_json)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if stop := _stopped(ended):
            left = getattr(stop, "__notes__", ["nothing is half-written"])
            output.show_error(Error(f"stopped; {left[0]}"), as_json=as_json)
            sys.exit(130)
        raise


def _stopped(ended: BaseException | None) -> KeyboardInterrupt | None:
    """Return what typer made a silent exit of."""
    while ended is not None and not isinstance(ended, KeyboardInterrupt):
        ended = ended.__cause__ or ended.__context__
    return ended
