"""Keys are made in a folder, and taken from there onto an ESP or into a virtual machine's firmware."""

import os
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from oci2boot.boot.keys import ENROLMENT, VARIABLES, Enrolment, check_parameters, generate_pair, key_to_pem
from oci2boot.errors import FormatError, SignatureError, TargetError, ToolError
from oci2boot.formats import esl
from oci2boot.formats.esl import Variable
from oci2boot.formats.x509 import Certificate, to_pem
from oci2boot.system.epoch import now, source_date_epoch
from oci2boot.system.files import half_written, plain_errors, temporary_name, write_atomically
from oci2boot.system.qemu import find_firmware
from oci2boot.system.run import find_program, run
from oci2boot.target.esp import replace_on_esp
from oci2boot.target.opened import open_disk
from oci2boot.target.types import ESP_TYPE
from oci2boot.workflows.keys.signing import read_bounded, read_certificate, read_trusted
from oci2boot.workflows.options import Option

OWNER: Final = "GUID.txt"
"""Whose keys these are, in the firmware's lists."""
MOK: Final = "db.cer"
"""At the top, where MokManager begins to look; it takes DER alone."""
TOOL_SECONDS: Final = 120
Folder = Annotated[Path, Option("FOLDER", "folder with PK, KEK and db")]
KeyPassphrase = Annotated[Path | None, Option("--passphrase-file", "file with the passphrase of the private keys")]


def parse_guid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise FormatError(f"not a GUID: {text!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    folder: Folder
    name: Annotated[str, Option("--name", "begin the names in the certificates with this")] = "oci2boot"
    bits: Annotated[int, Option("--bits", "size of the keys: 2048, 3072 or 4096")] = 2048
    days: Annotated[int, Option("--days", "days until the certificates expire; firmware ignores it")] = 3650
    owner: Annotated[
        uuid.UUID | None, Option("--guid", "GUID of the keys' owner; by default random", parse=parse_guid)
    ] = None
    db: Annotated[
        tuple[Path, ...],
        Option("--db", "certificate that db trusts as well, Microsoft's or a vendor's; may be repeated"),
    ] = ()
    passphrase: KeyPassphrase = None


@dataclass(frozen=True, slots=True)
class Generated:
    folder: Path
    owner: uuid.UUID
    certificates: Mapping[Variable, Certificate]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "owner": str(self.owner),
            "certificates": {name: certificate.fingerprint for name, certificate in self.certificates.items()},
            "not_after": self.certificates["db"].not_after.isoformat(),
        }


def generate(request: GenerateRequest) -> Generated:
    """Write PK, KEK and db: the keys, for their owner's eyes only, certificates, signature lists and signed variables.

    Keys that are there are never replaced: nobody could sign for the machines that know them.
    """
    check_parameters(request.bits, request.days, request.name)
    secret = read_bounded(request.passphrase).rstrip(b"\r\n") if request.passphrase else None
    if secret == b"":
        raise SignatureError(f"{request.passphrase} holds no passphrase")
    moment, owner = source_date_epoch(now()), request.owner or uuid.uuid4()
    pairs = {name: generate_pair(f"{request.name} {name}", request.bits, request.days, moment) for name in VARIABLES}
    enrolment = Enrolment.of(pairs, owner, moment, read_trusted(list(request.db)))
    files: dict[str, bytes] = {OWNER: f"{owner}\n".encode()}
    for name in VARIABLES:
        files[f"{name}.crt"] = to_pem("CERTIFICATE", pairs[name].certificate.der)
        files[f"{name}.esl"] = enrolment.lists[name]
        files[f"{name}.auth"] = enrolment.variables[name].pack()
    with plain_errors(TargetError, f"write keys to {request.folder}"):
        request.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = [f"{name}.key" for name in VARIABLES]
        present = [file for file in (*names, *files) if os.path.lexists(request.folder / file)]
        if present:
            raise TargetError(
                f"{request.folder} holds keys already: {', '.join(present)}",
                hint="they are not replaced; name another folder",
            )
        with half_written(request.folder):
            for name in VARIABLES:
                write_atomically(request.folder / f"{name}.key", key_to_pem(pairs[name].key, secret), 0o600)
            for file, data in files.items():
                write_atomically(request.folder / file, data)
    return Generated(request.folder, owner, {name: pair.certificate for name, pair in pairs.items()})


def enroll_on_esp(folder: Path, target: Path, *, mok: bool = False) -> list[str]:
    """Put the signed variables where systemd-boot finds them: on an ESP that is mounted, or in a disk or disk image.

    systemd-boot enrols them at the next start, if the firmware is in Setup Mode; on hardware, when told to in its menu.
    With `mok` it is the certificate of db, which a person at the machine enrols by shim's MokManager.
    """
    files = {f"{ENROLMENT}/{name}.auth": data for name, data in _variables(folder)[0].items()}
    if mok:
        files = {MOK: read_certificate(folder / "db.crt").der}
    if target.is_dir():
        with plain_errors(TargetError, f"write to {target}"):
            for path, data in files.items():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target / path, data)
    else:
        with open_disk(target) as disk:
            starts = [part.start for part in disk.gpt.partitions if part.type == ESP_TYPE]
        if len(starts) != 1:
            raise TargetError(f"{target} has {len(starts) or 'no'} EFI system partition{'s' if starts else ''}")
        replace_on_esp(target, starts[0], files, source_date_epoch(now()))
    return list(files)


def enroll_in_firmware(folder: Path, variables: Path, template: Path | None = None) -> None:
    """Write a variable store of OVMF that knows the keys, with Secure Boot on. virt-fw-vars(1)."""
    _, enrolment = _variables(folder)
    beside = Path(sys.executable).with_name("virt-fw-vars")
    program = find_program("virt-fw-vars") or find_program(str(beside))
    if program is None:
        raise ToolError(
            "virt-fw-vars is not installed", hint="pip install virt-firmware (Debian: python3-virt-firmware)"
        )
    owner = _owner(folder)
    temporary = temporary_name(variables.absolute())
    argv: list[str | Path] = [
        program,
        "--input", template or find_firmware(secure=True).variables,
        "--output", temporary,
        "--set-pk", owner, folder / "PK.crt",
        "--add-kek", owner, folder / "KEK.crt",
        "--secure-boot",
    ]  # fmt: skip
    with plain_errors(TargetError, f"write {variables}"), tempfile.TemporaryDirectory(prefix="oci2boot-") as scratch:
        for number, certificate in enumerate(esl.certificates(esl.parse_esl(enrolment.lists["db"]))):
            path = Path(scratch, f"{number}.crt")
            path.write_bytes(to_pem("CERTIFICATE", certificate.der))
            argv += ["--add-db", owner, path]
        try:
            run(argv, timeout=TOOL_SECONDS)
            temporary.replace(variables)
        finally:
            temporary.unlink(missing_ok=True)


def _variables(folder: Path) -> tuple[Mapping[Variable, bytes], Enrolment]:
    """Return the `.auth` files, in the order of their writing, and what they say; firmware will take them."""
    found = {name: read_bounded(folder / f"{name}.auth") for name in VARIABLES}
    enrolment = Enrolment.parse(found)
    for name in VARIABLES:
        if read_certificate(folder / f"{name}.crt").der not in enrolment.lists[name]:
            raise SignatureError(f"{folder}/{name}.auth and {name}.crt are of different keys")
    return found, enrolment


def _owner(folder: Path) -> str:
    text = read_bounded(folder / OWNER)[:64].decode("ascii", "replace").strip()
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise FormatError(f"{folder}/{OWNER} holds no GUID: {text!r}") from error
