"""`oci2boot keys`: Secure Boot keys, from their making to the firmware, and answers to those who ask for signatures."""

import uuid
from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli import output
from oci2boot.cli.options import AsJson
from oci2boot.errors import Error, FormatError
from oci2boot.workflows.keys import generate as workflow
from oci2boot.workflows.keys.signing import answer as answer_request

app = typer.Typer(name="keys", no_args_is_help=True, help="Make Secure Boot keys, enrol them, and sign for others.")

Folder = Annotated[Path, typer.Argument(help="with PK, KEK and db", show_default=False)]
Passphrase = Annotated[Path | None, typer.Option("--passphrase-file", help="of the private keys", show_default=False)]


@app.command()
def generate(
    folder: Folder,
    name: Annotated[str, typer.Option("--name", help="begins the names in the certificates")] = "oci2boot",
    bits: Annotated[int, typer.Option("--bits", help="2048, 3072 or 4096")] = 2048,
    days: Annotated[int, typer.Option("--days", help="until the certificates expire; firmware does not mind")] = 3650,
    guid: Annotated[str | None, typer.Option("--guid", help="the keys' owner; random", show_default=False)] = None,
    db: Annotated[
        list[Path] | None,
        typer.Option(
            "--db",
            help="another's certificate that db is to trust as well, Microsoft's or a vendor's; may be repeated",
            show_default=False,
        ),
    ] = None,
    passphrase: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Make PK, KEK and db: keys, certificates, signature lists, and the signed variables that firmware takes."""
    try:
        owner = uuid.UUID(guid) if guid else None
    except ValueError as error:
        raise FormatError(f"not a GUID: {guid!r}") from error
    made = workflow.generate(workflow.GenerateRequest(folder, name, bits, days, owner, passphrase, tuple(db or ())))
    if as_json:
        output.print_json(made)
        return
    output.show_inspected({"name": made["folder"], **made})
    output.out.print(
        f"sign with: --secureboot-key {folder}/db.key --secureboot-certificate {folder}/db.crt", markup=False
    )


@app.command()
def enroll(
    folder: Folder,
    esp: Annotated[
        Path | None,
        typer.Option("--esp", help="a mounted ESP, or a disk (image) with one: for systemd-boot", show_default=False),
    ] = None,
    mok: Annotated[
        bool, typer.Option("--mok", help="on the ESP for shim's MokManager: its menu enrols db.cer from disk")
    ] = False,
    variables: Annotated[
        Path | None,
        typer.Option("--ovmf-vars", help="the OVMF variable store to write, for a virtual machine", show_default=False),
    ] = None,
    template: Annotated[
        Path | None, typer.Option("--ovmf-template", help="the store to begin with", show_default=False)
    ] = None,
) -> None:
    """Put the keys where the firmware learns them."""
    if esp is None and variables is None:
        raise Error(
            "where should the keys go?", hint="name an ESP or a disk by --esp, or a variable store by --ovmf-vars"
        )
    if mok and esp is None:
        raise Error("shim's MokManager reads an ESP", hint="name it, or a disk, by --esp")
    if esp is not None:
        for path in workflow.enroll_on_esp(folder, esp, mok=mok):
            output.out.print(f"{esp}: {path}", markup=False)
    if variables is not None:
        workflow.enroll_in_firmware(folder, variables, template)
        output.out.print(f"{variables}: PK, KEK and db, Secure Boot on", markup=False)


@app.command()
def answer(
    request: Annotated[Path, typer.Argument(help="what --sign-request wrote", show_default=False)],
    key: Annotated[Path, typer.Option("--key", help="the private key, PEM", show_default=False)],
    response: Annotated[Path, typer.Option("--output", "-o", help="for --sign-response", show_default=False)],
    passphrase: Passphrase = None,
) -> None:
    """Sign what a request asks for, on the machine that has the key."""
    asked = answer_request(request, key, passphrase, response)
    for item in asked.items:
        output.out.print(f"signed {item.name}: {item.kind} {item.subject_hex}", markup=False)
