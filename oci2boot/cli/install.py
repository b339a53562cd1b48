"""`oci2boot install`: onto a disk."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from oci2boot.cli import output
from oci2boot.cli.day2 import Etc
from oci2boot.cli.machine_text import plan_facts
from oci2boot.cli.options import (
    AsJson,
    ProgressJson,
    Quiet,
    Repo,
    TlsVerify,
    complete_name,
    looks_like_a_source,
    parse_size,
    repo_path,
    source_options,
)
from oci2boot.errors import Error
from oci2boot.sysroot.etc import EtcPolicy
from oci2boot.sysroot.tpm2 import DEFAULT_PCRS
from oci2boot.workflows.images import list_images
from oci2boot.workflows.install.disk import install as run_install
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.directories import install_boot_directory, install_directories
from oci2boot.workflows.make.convert import convert as run_convert
from oci2boot.workflows.make.first_boot import read_first_boot, read_secret
from oci2boot.workflows.progress import Report
from oci2boot.workflows.requests import ConvertRequest, InstallRequest, parse_source


def register(app: typer.Typer) -> None:
    app.command()(install)


def install(
    image: Annotated[
        str | None,
        typer.Argument(
            help="a converted image, or a source to convert first; by default the image converted last",
            autocompletion=complete_name,
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        Path,
        typer.Option(
            "--target",
            help="a disk image or live.iso to make, a whole disk: /dev/vda, or the directory where the root file "
            "system is mounted",
            show_default=False,
        ),
    ] = Path(),
    esp: Annotated[
        Path | None,
        typer.Option(
            "--esp",
            metavar="DIR",
            help="where the boot directory is mounted, for a target that is one; without target, only this is written",
            show_default=False,
        ),
    ] = None,
    allow_missing_verity: Annotated[
        bool, typer.Option("--allow-missing-verity", help="take a directory on a file system without fs-verity")
    ] = False,
    etc: Etc = None,
    size: Annotated[str | None, typer.Option("--size", help="of a disk image: 10G; by default what is needed")] = None,
    esp_size: Annotated[str | None, typer.Option("--esp-size", help="of the EFI system partition")] = None,
    verity_partition_size: Annotated[
        str | None,
        typer.Option("--verity-partition-size", help="of the partition with the hash tree: 100M", show_default=False),
    ] = None,
    ab: Annotated[
        bool,
        typer.Option(
            "--ab",
            help="two slots for a root file system under dm-verity: `upgrade` writes the one that is not booted",
        ),
    ] = False,
    root_size: Annotated[
        str | None,
        typer.Option(
            "--root-size",
            help="with --ab, of the root partition in a slot: 8G; by default half as much again as the image takes",
            show_default=False,
        ),
    ] = None,
    sector_size: Annotated[
        int | None, typer.Option("--sector-size", help="of a disk image: 512 or 4096 bytes; a disk has its own")
    ] = None,
    format: Annotated[
        Literal["raw", "qcow2", "vmdk", "vhd", "vdi", "iso"] | None,
        typer.Option("--format", help="of a disk image, or iso for a live ISO; by default what its name ends in"),
    ] = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="replace a disk image, or all that is on a disk")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before a disk is overwritten")] = False,
    hostname: Annotated[
        str | None, typer.Option("--hostname", help="of the machine, in its own /etc", show_default=False)
    ] = None,
    ssh_key: Annotated[
        list[Path] | None,
        typer.Option("--ssh-key", help="file with public keys that may log in as root; may be repeated"),
    ] = None,
    credential: Annotated[
        list[str] | None,
        typer.Option(
            "--credential",
            metavar="NAME=VALUE|NAME=@FILE",
            help="for the machine's services, in its /etc/credstore; may be repeated. As all of /etc, host name, keys "
            "and credentials are not verified at boot; without LUKS, whoever has the disk can read them",
            show_default=False,
        ),
    ] = None,
    luks_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--luks-passphrase-file",
            help="encrypt the root partition by LUKS2; the file's one line opens it. Keys and identifiers are random: "
            "no two such disks are equal. The image's initramfs has to have systemd-cryptsetup",
            show_default=False,
        ),
    ] = None,
    luks_pbkdf_memory: Annotated[
        str | None,
        typer.Option(
            "--luks-pbkdf-memory",
            metavar="SIZE",
            help="that trying one passphrase takes: 64M for a machine with 512M; by default what cryptsetup finds "
            "right for the machine that this runs on",
            show_default=False,
        ),
    ] = None,
    luks_tpm2: Annotated[
        bool,
        typer.Option(
            "--luks-tpm2",
            help="at its first boot, the machine enrols its TPM, which then opens the disk; the passphrase stays "
            "valid. The image's initramfs has to have the TPM's libraries",
        ),
    ] = False,
    luks_tpm2_pcrs: Annotated[
        str,
        typer.Option(
            "--luks-tpm2-pcrs",
            help="what has to be as it was for the TPM to open the disk. 7 is Secure Boot and its keys: it outlasts "
            "upgrades, and trusts whatever those keys sign; without Secure Boot it keeps out nobody who has the "
            "machine. A policy signed for PCR 11, where the UKI brings one, is enrolled too, and admits no other UKIs",
        ),
    ] = DEFAULT_PCRS,
    nvram: Annotated[
        bool, typer.Option("--nvram/--no-nvram", help="put a disk of this machine into the firmware's boot menu")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan, write nothing")] = False,
    repo: Repo = None,
    tls_verify: TlsVerify = "true",
    as_json: AsJson = False,
    progress_json: ProgressJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a converted image to a disk: partitions, boot loader, UKI, and every object under fs-verity."""
    if target == Path() and esp is None:
        raise Error("where should it go?", hint="name a disk image: --target disk.raw")
    if esp is None and target.is_dir() and target != Path():
        raise Error(f"{target} is a directory: where is the boot directory?", hint="name it: --esp DIR")
    path = repo_path(repo, writing=image is not None and looks_like_a_source(image))
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        if image and looks_like_a_source(image) and all(found.name != image for found in list_images(path)):
            converted = run_convert(
                ConvertRequest(parse_source(image), path, options=source_options(tls_verify=tls_verify)), report
            )
            image = converted.name
    first_boot = read_first_boot(hostname, ssh_key or [], credential or [], luks_tpm2_pcrs if luks_tpm2 else None)
    if esp is not None:
        for given, option in (
            (size, "--size"),
            (esp_size, "--esp-size"),
            (verity_partition_size, "--verity-partition-size"),
            (ab or None, "--ab"),
            (root_size, "--root-size"),
            (sector_size, "--sector-size"),
            (format, "--format"),
            (luks_passphrase_file, "--luks-passphrase-file"),
            (luks_pbkdf_memory, "--luks-pbkdf-memory"),
            (luks_tpm2 or None, "--luks-tpm2"),
        ):
            if given is not None:
                raise Error(f"{option} is for disks, and --esp for file systems that are there already")
        options = DeployOptions(EtcPolicy.parse(tuple(etc or ())), allow_missing_verity, first_boot)
        with output.reporting(progress_json=progress_json, quiet=quiet) as report:
            _install_directories(
                path, image, target, esp, options, report, nvram=nvram, dry_run=dry_run, as_json=as_json
            )
        return
    if root_size and not ab:
        raise Error("--root-size is of the slots that --ab makes", hint="give --ab too, or leave it out")
    request = InstallRequest(
        repo=path,
        target=target,
        name=image,
        size=parse_size(size) if size else None,
        esp_size=parse_size(esp_size) if esp_size else None,
        verity_size=parse_size(verity_partition_size) if verity_partition_size else None,
        ab=ab,
        root_size=parse_size(root_size) if root_size else None,
        wipe=wipe,
        format=format,
        sector=sector_size,
        secret=read_secret(luks_passphrase_file, parse_size(luks_pbkdf_memory) if luks_pbkdf_memory else None),
        first_boot=first_boot,
        nvram=nvram,
    )
    if not dry_run and target.is_block_device() and not yes:
        _confirm(request, as_json=as_json)
    with output.reporting(progress_json=progress_json, quiet=quiet) as report:
        installed = run_install(request, report, dry_run=dry_run)
    if as_json:
        output.print_json(installed.to_json())
    else:
        output.show_installed(installed)


def _install_directories(
    repo: Path,
    image: str | None,
    target: Path,
    esp: Path,
    options: DeployOptions,
    report: Report,
    *,
    nvram: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Install into file systems that somebody else mounted."""
    if target == Path():
        bootable, boot = install_boot_directory(repo, image, esp, report, dry_run=dry_run)
        found = {"image": bootable.to_json(), "boot": boot.to_json(), "written": not dry_run}
        facts = [("image", bootable.name), ("first entry", boot.first)]
    else:
        plan = install_directories(repo, image, target, esp, options, report, nvram=nvram, dry_run=dry_run)
        found = plan.to_json() | {"written": not dry_run}
        facts = plan_facts(plan)
    if as_json:
        output.print_json(found)
    else:
        output.print_facts([*facts, ("written", "no" if dry_run else str(esp if target == Path() else target))])


def _confirm(request: InstallRequest, *, as_json: bool) -> None:
    """Show what will be overwritten by what, and have the device's name typed."""
    if as_json or not (sys.stdin.isatty() and output.out.is_terminal):
        raise Error(
            f"{request.target} would be overwritten, and nobody is here to ask", hint="--yes says that it may be"
        )
    output.show_installed(run_install(request, lambda _: None, dry_run=True))
    if typer.prompt(f"Everything on {request.target} will be lost. Type its name to go on") != str(request.target):
        raise Error(f"that is not {request.target}: nothing was written")
