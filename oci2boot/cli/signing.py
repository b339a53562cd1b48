"""The options by which commands are told how to sign."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from oci2boot.errors import Error
from oci2boot.workflows.requests import SigningOptions

_PANEL = "Signing"

Key = Annotated[
    str | None,
    typer.Option(
        "--secureboot-key",
        help="the private key: a PEM file, or with --signtool a pkcs11: URI",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--secureboot-certificate",
        help="of the key that signs, as it is or will be in the firmware's db",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Passphrase = Annotated[
    Path | None,
    typer.Option("--secureboot-passphrase-file", help="of the private key", show_default=False, rich_help_panel=_PANEL),
]
SignCommand = Annotated[
    str | None,
    typer.Option(
        "--sign-command",
        help="takes what is to be signed on standard input, writes the raw RSA signature",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
SignTool = Annotated[
    Literal["sbsign", "systemd-sbsign", "osslsigncode"] | None,
    typer.Option("--signtool", help="for keys in PKCS #11 tokens", show_default=False, rich_help_panel=_PANEL),
]
Pkcs11Module = Annotated[
    Path | None,
    typer.Option("--pkcs11-module", help="the token's library", show_default=False, rich_help_panel=_PANEL),
]
SignRequest = Annotated[
    Path | None,
    typer.Option(
        "--sign-request",
        help="sign nothing, write what is to be signed to this file",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
SignResponse = Annotated[
    Path | None,
    typer.Option("--sign-response", help="the answer to a --sign-request", show_default=False, rich_help_panel=_PANEL),
]


def signing_options(
    key: str | None,
    certificate: Path | None,
    passphrase: Path | None,
    command: str | None,
    tool: Literal["sbsign", "systemd-sbsign", "osslsigncode"] | None,
    module: Path | None,
    request: Path | None,
    response: Path | None,
) -> SigningOptions | None:
    """Return how to sign; None where nothing is said of it."""
    others = (key, passphrase, command, tool, module, request, response)
    if certificate is None:
        if any(value is not None for value in others):
            raise Error("who signs? a certificate is missing", hint="name it by --secureboot-certificate")
        return None
    return SigningOptions(
        certificate=certificate,
        key=key,
        passphrase=passphrase,
        command=command,
        tool=tool,
        pkcs11_module=module,
        request=request,
        response=response,
    )
