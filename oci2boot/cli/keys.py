"""`oci2boot keys`: Secure Boot keys, from their making to the firmware, and answers to those who ask for signatures."""

from pathlib import Path
from typing import Annotated

import typer

from oci2boot.cli.groups import command
from oci2boot.cli.options import JustJson
from oci2boot.cli.output import out, show_inspected
from oci2boot.errors import Error
from oci2boot.workflows.keys import generate as workflow
from oci2boot.workflows.keys.generate import Folder, Generated, GenerateRequest, KeyPassphrase
from oci2boot.workflows.keys.signing import answer as answer_request
from oci2boot.workflows.options import Option

app = typer.Typer(name="keys", no_args_is_help=True, help="Make Secure Boot keys, enrol them, and sign for others.")


@command(app)
def generate(*, request: GenerateRequest, output: JustJson) -> None:
    """Make PK, KEK and db: keys, certificates, signature lists, and the signed variables that firmware takes."""
    output.show(workflow.generate(request), _show_generated)


def _show_generated(made: Generated) -> None:
    show_inspected({"name": str(made.folder), **made.to_json()})
    db = made.folder / "db"
    out.print(f"sign with: --secureboot-key {db}.key --secureboot-certificate {db}.crt", markup=False)


@command(app)
def enroll(
    *,
    folder: Folder,
    esp: Annotated[Path | None, Option("--esp", "a mounted ESP, or a disk (image) with one, for systemd-boot")] = None,
    mok: Annotated[bool, Option("--mok", "put db.cer on the ESP, for the menu of shim's MokManager")] = False,
    variables: Annotated[
        Path | None, Option("--ovmf-vars", "the OVMF variable store to write, for a virtual machine")
    ] = None,
    template: Annotated[Path | None, Option("--ovmf-template", "the variable store to start from")] = None,
) -> None:
    """Put the keys where the firmware finds them."""
    if esp is None and variables is None:
        raise Error(
            "where should the keys go?", hint="name an ESP or a disk by --esp, or a variable store by --ovmf-vars"
        )
    if mok and esp is None:
        raise Error("shim's MokManager reads an ESP", hint="name it, or a disk, by --esp")
    if esp is not None:
        for path in workflow.enroll_on_esp(folder, esp, mok=mok):
            out.print(f"{esp}: {path}", markup=False)
    if variables is not None:
        workflow.enroll_in_firmware(folder, variables, template)
        out.print(f"{variables}: PK, KEK and db, Secure Boot on", markup=False)


@command(app)
def answer(
    *,
    request: Annotated[Path, Option("REQUEST", "the file that --sign-request wrote")],
    key: Annotated[Path, Option("--key", "private key, PEM")],
    response: Annotated[Path, Option("--output", "the answer, for --sign-response", short="-o")],
    passphrase: KeyPassphrase = None,
) -> None:
    """Sign what a request asks for, on the machine that has the key."""
    asked = answer_request(request, key, passphrase, response)
    for item in asked.items:
        out.print(f"signed {item.name}: {item.kind} {item.subject_hex}", markup=False)
