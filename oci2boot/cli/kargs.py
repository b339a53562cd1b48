"""`oci2boot kargs`: a machine's own kernel arguments."""

from typing import Annotated

import typer

from oci2boot.cli import output, signing
from oci2boot.cli.day2 import DryRun, EspDir, SysrootDir
from oci2boot.cli.options import AsJson, Quiet
from oci2boot.sysroot.machine import open_sysroot
from oci2boot.workflows.machine.kargs import LocalArguments, add_arguments, list_arguments, remove_arguments

app = typer.Typer(name="kargs", no_args_is_help=True, help="This machine's own kernel arguments, in a signed addon.")

Words = Annotated[list[str], typer.Argument(metavar="ARGUMENT...", show_default=False)]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app)


@app.command("list")
def list_all(sysroot: SysrootDir = None, esp: EspDir = None, as_json: AsJson = False) -> None:
    """Show what this machine adds to its images' command lines."""
    _show(list_arguments(open_sysroot(sysroot, esp)), as_json=as_json)


@app.command()
def add(
    arguments: Words,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    sign_command: signing.SignCommand = None,
    signtool: signing.SignTool = None,
    pkcs11_module: signing.Pkcs11Module = None,
    dry_run: DryRun = False,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Add arguments that weaken nothing: consoles, logging, locale, huge pages and the like."""
    how = signing.signing_options(key, certificate, passphrase, sign_command, signtool, pkcs11_module, None, None)
    with output.reporting(quiet=quiet) as report:
        made = add_arguments(open_sysroot(sysroot, esp), arguments, how, report, dry_run=dry_run)
    _show(made, as_json=as_json)


@app.command()
def remove(
    arguments: Words,
    key: signing.Key = None,
    certificate: signing.Certificate = None,
    passphrase: signing.Passphrase = None,
    sign_command: signing.SignCommand = None,
    signtool: signing.SignTool = None,
    pkcs11_module: signing.Pkcs11Module = None,
    dry_run: DryRun = False,
    sysroot: SysrootDir = None,
    esp: EspDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take arguments of the machine's own away again."""
    how = signing.signing_options(key, certificate, passphrase, sign_command, signtool, pkcs11_module, None, None)
    with output.reporting(quiet=quiet) as report:
        made = remove_arguments(open_sysroot(sysroot, esp), arguments, how, report, dry_run=dry_run)
    _show(made, as_json=as_json)


def _show(found: LocalArguments, *, as_json: bool) -> None:
    if as_json:
        output.print_json(found.to_json())
    else:
        output.out.print(" ".join(found.arguments) or "none", markup=False)
