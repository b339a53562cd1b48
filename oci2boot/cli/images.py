"""Commands about what is in the store: images, inspect, export, mount."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from oci2boot.cli.options import AllowMissingVerity, AttestHook, JustJson, Registry
from oci2boot.cli.output import Output, out, print_json, print_table, show_inspected
from oci2boot.workflows.images import Bootable, default_repo, forget, image_names, list_images, writable_repo
from oci2boot.workflows.machine.mount import mount as run_mount
from oci2boot.workflows.make.export import Exported
from oci2boot.workflows.make.export import export as run_export
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import ChosenRepo, Fetching, Repo
from oci2boot.workflows.sources import Destination
from oci2boot.workflows.verify.inspect import inspect as run_inspect
from oci2boot.workflows.verify.inspect import measured_manifest


def images(
    *,
    remove: Annotated[
        str | None, Option("--remove", "forget this image; `gc` frees its space", complete=image_names)
    ] = None,
    repo: ChosenRepo = None,
    output: JustJson,
) -> None:
    """List the converted images, the newest first."""
    if remove is not None:
        forget(repo or writable_repo(), remove)
    found = list_images(repo or default_repo())
    if output.as_json:
        print_json([image.to_json() for image in found])
    else:
        _show_images(found)


def _show_images(images: Sequence[Bootable]) -> None:
    rows = [
        (image.name, image.root.image.hex[:16], image.title, image.kernel or "none", image.architecture, image.source)
        for image in images
    ]
    if rows:
        print_table(("NAME", "DIGEST", "SYSTEM", "KERNEL", "ARCH", "SOURCE"), rows)
    else:
        out.print("no image has been converted yet")


def inspect(
    *,
    image: Annotated[str, Option("IMAGE", "a converted image, or a source", complete=image_names)],
    repo: Repo,
    manifest: Annotated[
        bool, Option("--manifest", "print every path of a converted image, for `verify --against`")
    ] = False,
    attest_hook: AttestHook = None,
    fetching: Fetching,
    output: JustJson,
) -> None:
    """Say what an image is, without fetching its layers."""
    if manifest or attest_hook is not None:
        measured = measured_manifest(image, repo, attest_hook)
        if manifest:
            print_json(measured.to_json())
            return
    output.show(run_inspect(image, repo, fetching.options()), lambda found: show_inspected(found.to_json()))


def export(
    *,
    image: Annotated[str, Option("IMAGE", "a converted image", complete=image_names)],
    destination: Destination,
    repo: Repo,
    registry: Registry,
    output: Output,
) -> None:
    """Write an image out of the store: each layer's tar byte for byte, uncompressed."""
    with output.reporting() as report:
        exported = run_export(repo, image, destination, registry.options(), report)
    output.show(exported, _show_exported)


def _show_exported(exported: Exported) -> None:
    rows = [("manifest", str(exported.manifest)), ("layers", str(exported.layers))]
    print_table(("exported", exported.destination), rows)


def mount(
    *,
    image: Annotated[str, Option("IMAGE", "a converted image, or the digest of a rootfs image", complete=image_names)],
    target: Annotated[Path, Option("TARGET", "a directory")],
    repo: Repo,
    allow_missing_verity: AllowMissingVerity = False,
    output: JustJson,
) -> None:
    """Mount a rootfs image of the store, read-only; the kernel checks every file as it is read. `umount` ends it."""
    digest = run_mount(repo, image, target, allow_missing_verity=allow_missing_verity)
    if output.as_json:
        print_json({"digest": str(digest), "target": str(target)})
