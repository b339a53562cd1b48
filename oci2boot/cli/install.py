"""`oci2boot install`: onto a disk, or into file systems that somebody else mounted."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from oci2boot.cli.groups import Only
from oci2boot.cli.machine_text import plan_facts, warn
from oci2boot.cli.options import DryRun, TlsVerify
from oci2boot.cli.output import Output, out, print_facts, print_table, size
from oci2boot.errors import Error
from oci2boot.workflows.images import DmVerityRoot, default_repo, image_names, list_images
from oci2boot.workflows.install.disk import Installed
from oci2boot.workflows.install.disk import install as run_install
from oci2boot.workflows.install.takeover import ITEMS, Asked, find_old, parse_items
from oci2boot.workflows.machine.demands import Allowed
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.directories import BootDirectoryPlan, install_boot_directory, install_directories
from oci2boot.workflows.machine.model import DeployPlan
from oci2boot.workflows.make.convert import convert as run_convert
from oci2boot.workflows.make.first_boot import AskedFirstBoot, AskedSecret
from oci2boot.workflows.options import Option, said
from oci2boot.workflows.progress import Report
from oci2boot.workflows.requests import ChosenRepo, ConvertRequest, DiskRequest, Fetching, InstallRequest, Linting
from oci2boot.workflows.sources import is_source, parse_source

Image = Annotated[
    str | None,
    Option(
        "IMAGE",
        "a converted image, or a source to convert first; by default the image converted last",
        complete=image_names,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A disk, or file systems that are mounted."""

    target: Annotated[
        Path | None,
        Option(
            "--target",
            "disk image or live.iso to make; or a whole disk: /dev/vda; or the directory where the root file system is "
            "mounted",
        ),
    ] = None
    esp: Annotated[
        Path | None,
        Option(
            "--esp",
            "where the boot directory is mounted, if the target is a directory; without --target, only this is written",
            metavar="DIR",
        ),
    ] = None

    def check(self, disk: DiskRequest, secret: AskedSecret, first_boot: AskedFirstBoot, allowed: Allowed) -> None:
        """Raise `Error` for places and options that do not go together."""
        if self.target is None and self.esp is None:
            raise Error("where should it go?", hint="name a disk image: --target disk.raw")
        if self.esp is None and self.target and self.target.is_dir():
            raise Error(f"{self.target} is a directory: where is the boot directory?", hint="name it: --esp DIR")
        if self.esp is not None:
            for option in [*said(disk), *said(secret), *(["--luks-tpm2"] if first_boot.tpm2 else [])]:
                raise Error(f"{option} is for disks, and --esp for file systems that are there already")
        if self.esp is None or self.target is None:
            for option in said(allowed):
                raise Error(
                    f"{option} is for a machine that has an image, and here none is known of", hint="leave it out"
                )
        if disk.root_size and not disk.ab:
            raise Error("--root-size is of the slots that --ab makes", hint="give --ab too, or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How it is written, and what besides."""

    wipe: Annotated[bool, Option("--wipe", "replace the disk image, or everything on the disk")] = False
    yes: Annotated[bool, Option("--yes", "do not ask before a disk is overwritten")] = False
    nvram: Annotated[bool, Option("--nvram/--no-nvram", "add a disk of this machine to the firmware's boot menu")] = (
        True
    )
    dry_run: DryRun = False


TakingOver = Annotated[
    str | None,
    Option(
        "--take-over",
        "what the new system gets of the one that is there: all, none, or some of "
        f"{','.join(ITEMS)}; asked on a terminal, none elsewhere",
        metavar="ITEMS",
    ),
]


def install(
    *,
    image: Image = None,
    where: Where,
    take_over: TakingOver = None,
    options: Annotated[DeployOptions, Only("etc", "allow_missing_verity")],
    disk: DiskRequest,
    first_boot: AskedFirstBoot,
    secret: AskedSecret,
    writing: Writing,
    linting: Linting,
    allowed: Allowed,
    repo: ChosenRepo = None,
    fetching: TlsVerify,
    output: Output,
) -> None:
    """Write a converted image to a disk: partitions, boot loader, UKI, and every object under fs-verity."""
    where.check(disk, secret, first_boot, allowed)
    repo = repo or default_repo(writing=image is not None and is_source(image))
    told, passphrase = first_boot.read(), secret.read()
    with output.reporting() as report:
        name, looked_at = _converted(image, repo, fetching, linting, report)
    if where.esp is not None:
        options = replace(options, first_boot=told, take_over=_asked(take_over, where, writing, output))
        checks = None if looked_at else linting
        _install_directories(repo, name, where, options, writing, checks, allowed, output)
        return
    if take_over is not None:
        raise Error("--take-over is for a system that is there, and a disk is written whole", hint="leave it out")
    assert where.target
    request = InstallRequest(
        repo=repo,
        target=where.target,
        name=name,
        disk=disk,
        wipe=writing.wipe,
        secret=passphrase,
        first_boot=told,
        nvram=writing.nvram,
        linting=None if looked_at else linting,
    )
    if not writing.dry_run and request.target.is_block_device() and not writing.yes:
        _confirm(request, as_json=output.as_json)
    with output.reporting() as report:
        installed = run_install(request, report, dry_run=writing.dry_run)
    output.show(installed, _show)


def _asked(words: str | None, where: Where, writing: Writing, output: Output) -> Asked | None:
    """Return what is to be taken over of the system that is at the target; on a terminal, show it and ask."""
    items = None if words is None else parse_items(words)
    if where.target is None or items == () or (where.target / "composefs/meta.json").exists():
        if items:
            raise Error("--take-over is for the first image of a machine", hint="leave it out")
        return None
    old = find_old(where.target)
    if old is None:
        if items:
            raise Error(f"there is no system in {where.target} that anything could be taken over from")
        return None
    if items is None:
        if not (sys.stdin.isatty() and out.is_terminal) or output.as_json or writing.yes:
            warn([f"{old.title} is here: its users, keys and data stay its own; --take-over all takes them over"])
            return None
        out.print(f"[bold]{escape(old.title)}[/] is here, and stays in the boot menu. The new system can take over:")
        out.print(f"  {', '.join(ITEMS)}")
        items = parse_items(typer.prompt("What? all, none, or some of them with commas"))
    return Asked(old=old, items=items) if items else None


def _converted(
    image: str | None, repo: Path, fetching: Fetching, linting: Linting, report: Report
) -> tuple[str | None, bool]:
    """Return the name of a converted image; a source that no image is called by is converted first, and checked."""
    if image is None or not is_source(image) or any(found.name == image for found in list_images(repo)):
        return image, False
    request = ConvertRequest(source=parse_source(image), repo=repo, options=fetching.options(), linting=linting)
    return run_convert(request, report).name, True


def _install_directories(
    repo: Path,
    name: str | None,
    where: Where,
    options: DeployOptions,
    writing: Writing,
    linting: Linting | None,
    allowed: Allowed,
    output: Output,
) -> None:
    root, esp, dry_run = where.target, where.esp, writing.dry_run
    assert esp
    place = "no" if dry_run else str(root or esp)
    if root is None:
        with output.reporting() as report:
            files = install_boot_directory(repo, name, esp, report, dry_run=dry_run)
        output.show(files, partial(_show_boot_files, place=place), written=not dry_run)
        return
    with output.reporting() as report:
        plan = install_directories(
            *(repo, name, root, esp, options, report),
            nvram=writing.nvram,
            dry_run=dry_run,
            linting=linting,
            allowed=allowed,
        )
    output.show(plan, partial(_show_plan, place=place), written=not dry_run)


def _show_boot_files(files: BootDirectoryPlan, place: str) -> None:
    print_facts([("image", files.bootable.name), ("first entry", files.boot.first), ("written", place)])


def _show_plan(plan: DeployPlan, place: str) -> None:
    takeover = getattr(plan, "takeover", None)
    if takeover:
        print_table(("TAKEN OVER", f"FROM {takeover.old.title.upper()}"), takeover.shown)
        for note in takeover.notes:
            out.print(f"stays behind: {note}", markup=False)
    print_facts([*plan_facts(plan), ("written", place)])


def _confirm(request: InstallRequest, *, as_json: bool) -> None:
    """Show what will be overwritten by what, and have the device's name typed."""
    if as_json or not (sys.stdin.isatty() and out.is_terminal):
        raise Error(
            f"{request.target} would be overwritten, and nobody is here to ask", hint="--yes says that it may be"
        )
    _show(run_install(request, lambda _: None, dry_run=True))
    if typer.prompt(f"Everything on {request.target} will be lost. Type its name to go on") != str(request.target):
        raise Error(f"that is not {request.target}: nothing was written")


def _show(installed: Installed) -> None:
    plan = installed.plan
    print_table(
        ("PARTITION", "START", "SIZE", "USED", "FILE SYSTEM", "GUID"),
        [
            (part.label, size(part.start), size(part.size), size(part.used), part.filesystem, part.guid)
            for part in plan.partitions
        ],
    )
    match installed.bootable.root:
        case DmVerityRoot(root_hash=None):
            verified = "nothing: converted without dm-verity"
        case DmVerityRoot(root_hash=root_hash):
            verified = f"the root partition by dm-verity, {root_hash}"
        case _:
            verified = f"{plan.to_json()['verity_files']} files by fs-verity"
    device, done = installed.device, "written" if installed.written else "not written"
    print_facts(
        [
            *(
                [
                    ("device", f"{device.model or device.name}{', removable' if device.removable else ''}"),
                    ("found on it", ", ".join(device.signatures) or "nothing"),
                ]
                if device
                else []
            ),
            ("image", f"{installed.bootable.name} ({installed.bootable.title})"),
            ("boots", str(installed.bootable.cmdline)),
            ("verified", verified),
            *([("encrypted", "the root partition, by LUKS2")] if plan.root.header else []),
            *([("firmware", f"boot entry {installed.nvram}")] if installed.nvram else []),
            ("disk", f"{installed.target} ({installed.format}, {size(plan.size)}), {done}"),
        ]
    )
