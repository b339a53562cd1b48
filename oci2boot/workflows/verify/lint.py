"""Every check of an image where it comes from, in a directory, or in the store."""

from dataclasses import dataclass, field
from pathlib import Path

from oci2boot.oci.image import host_platform
from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import SourceOptions
from oci2boot.store.repository import Repository
from oci2boot.workflows.images import default_repo, list_images
from oci2boot.workflows.lint.model import Subject
from oci2boot.workflows.lint.run import Linted, lints_of, run_lints
from oci2boot.workflows.lint.stored import stored_subject
from oci2boot.workflows.make.digest import gather
from oci2boot.workflows.make.unpack import object_reader, unpack
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import BootOptions, Linting
from oci2boot.workflows.sources import parse_source


@dataclass(frozen=True, slots=True, kw_only=True)
class LintRequest:
    image: str
    """A source, or the name of a converted image."""
    repo: Path | None = None
    options: SourceOptions = field(default_factory=SourceOptions)
    boot: BootOptions = field(default_factory=BootOptions)
    linting: Linting = field(default_factory=Linting)


def lint(request: LintRequest, report: Report) -> Linted:
    """Look at an image: a source's layers go into the store, where `convert` finds them; a directory is only read."""
    skip = request.linting.skip
    lints_of(skip)
    for bootable in list_images(request.repo or default_repo()):
        if bootable.name == request.image:
            with Repository.open(request.repo or default_repo()) as repository:
                return run_lints(stored_subject(repository, bootable), bootable.name, skip)
    reference = parse_source(request.image)
    if isinstance(reference, DirectoryReference):
        gathered = gather(reference, "sha256", request.options, report)
        platform = request.options.platform or host_platform()
        subject = Subject(tree=gathered.tree, read=gathered.read, architecture=platform.architecture, boot=request.boot)
        return run_lints(subject, str(reference), skip)
    with Repository.ensure(request.repo or default_repo(writing=True), None) as repository:
        unpacked = unpack(reference, request.options, repository, report, lambda text: report(Warned(text)))
        subject = Subject(
            tree=unpacked.tree,
            read=object_reader(repository),
            architecture=unpacked.architecture,
            boot=request.boot,
        )
        return run_lints(subject, str(reference), skip)
