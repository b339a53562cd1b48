"""A source becomes a bootable image in the store: fetch, merge, label, digest, boot files."""

from collections.abc import Sequence
from dataclasses import replace

from oci2boot.boot.sealed import Variant, find_sealable
from oci2boot.boot.uki_layer import without_kernel
from oci2boot.boot.vendor import choose_vendor
from oci2boot.errors import FlowError
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.rootfs.composefs import Rootfs, build_rootfs
from oci2boot.store.images import WITHOUT_UKI, Bootable, check_name, save
from oci2boot.store.repository import Repository
from oci2boot.store.roots import ComposefsRoot
from oci2boot.tree.model import Directory
from oci2boot.workflows.keys.signing import check_signing
from oci2boot.workflows.lint.model import Subject
from oci2boot.workflows.lint.run import check, lints_of
from oci2boot.workflows.make.again import OUTCOME, remembered
from oci2boot.workflows.make.canonical import RULES, Read, canonical_tree, karg_of, tell_size
from oci2boot.workflows.make.convert_verity import check_verity_request, make_verity
from oci2boot.workflows.make.directory import AskedTimes
from oci2boot.workflows.make.loose import check_flow, files_of, write_loose
from oci2boot.workflows.make.payload import (
    BootFiles,
    Made,
    local_files,
    os_release_of,
    promise_of,
    signed_files,
    type1_files,
    version_of,
    with_loader,
)
from oci2boot.workflows.make.published import attach_published
from oci2boot.workflows.make.rules import Workbench, rules_of
from oci2boot.workflows.make.sealed import (
    Digests,
    candidates,
    find_sealed,
    sealed_files,
    vendor_files,
)
from oci2boot.workflows.make.shipped import Shipped
from oci2boot.workflows.make.signers import check_db, outcome_of, warn_of_undated
from oci2boot.workflows.make.stale import Stale
from oci2boot.workflows.make.started import check_started
from oci2boot.workflows.make.unpack import Unpacked, object_reader, renamer, unpack
from oci2boot.workflows.progress import Report, Told, Warned, once
from oci2boot.workflows.requests import BootOptions, ConvertRequest


def convert(request: ConvertRequest, report: Report) -> Bootable:
    """Store an image and what boots it. Run again, it fetches and writes only what is new."""

    report = once(report)

    def warn(text: str) -> None:
        report(Warned(text))

    name = check_name(request.name or request.source.name)
    check_flow(request)
    lints_of(request.linting.skip)
    if request.boot and request.boot.signing:
        check_signing(request.boot.signing)
    times = AskedTimes.of(request.tree, request.source)
    if request.verity:
        check_verity_request(request, request.verity)
    with Repository.ensure(request.repo, request.hash) as repository:
        unpacked = unpack(request.source, request.options, repository, report, warn, request.uki_layer, times)
        warnings: Sequence[Warned] = ()
        if request.boot:
            subject = Subject(
                tree=unpacked.tree,
                read=object_reader(repository),
                architecture=unpacked.architecture,
                boot=request.boot,
                verity=request.verity,
            )
            warnings = check(subject, str(request.source), request.linting, report)
            if request.boot.strip_kernel:
                unpacked = _stripped(unpacked, request.boot, repository)
        if request.verity:
            made = make_verity(request, request.verity, unpacked, repository, report)
        else:
            made = _make_composefs(request, unpacked, repository, report)
        for warning in warnings:
            report(warning)
        loose = (
            files_of(made.files.loose, request.boot) if request.directory and request.boot and made.files.loose else {}
        )
        warn_of_undated(made.files, report)
        outcome = {OUTCOME: outcome_of(made.files, request.boot, report).to_json()} if made.files.esp else {}
        bootable = Bootable(
            name=name,
            source=str(request.source),
            rules=RULES,
            root=made.root,
            selinux_rules=made.rules.selinux_rules,
            xattrs=made.rules.xattrs,
            manifest=unpacked.oci.manifest_digest if unpacked.oci else None,
            architecture=unpacked.architecture,
            title=os_release_of(made.tree, object_reader(repository)).get("PRETTY_NAME", name),
            kernel=made.files.kernel,
            cmdline=made.files.cmdline,
            flow=made.files.flow,
            sizes=made.files.sizes.to_json() if made.files.sizes else {},
            options={**remembered(request), **outcome},
        )
        saved = save(repository, bootable, made.listed.image, made.files.esp or {}, unpacked.oci)
    if request.directory:
        write_loose(request.directory, loose, saved, report)
    return saved


def _make_composefs(request: ConvertRequest, unpacked: Unpacked, repository: Repository, report: Report) -> Made:
    """Compute the composefs image under the rules that its UKI promises, else those that were asked for."""
    read = object_reader(repository)
    bench = Workbench(unpacked.system, rules_of(request.tree, repository.algorithm), read, renamer(repository))
    shipped = Shipped(unpacked, request.tree, repository, report)

    def own() -> tuple[Directory, Rootfs]:
        tree = canonical_tree(unpacked.system, request.tree, read, lambda text: report(Warned(text)))
        rootfs = build_rootfs(tree, request.tree.erofs_version, repository.algorithm)
        report(Told(tell_size(rootfs)))
        return tree, rootfs

    digests = Digests(bench, request.tree, repository.algorithm, own, shipped)
    variant, files = None, BootFiles()
    if request.boot:
        why = Stale(unpacked, bench, repository)
        variant, files = _choose_payload(unpacked, digests, request.boot, read, report, why)
        files = with_loader(files, unpacked.tree, unpacked.architecture, request.boot, read, report)
        files = attach_published(files, request, unpacked.oci.manifest_digest if unpacked.oci else None, report)
        files = signed_files(files, request.boot.signing, report)
        check_started(files, request.boot)
        check_db(files, request.boot)
    rules, rootfs = request.tree, digests.asked if variant is None else digests.rootfs(variant)
    if variant:
        rules = digests.options_of(variant)
    if shipped.tell(rootfs.digest):
        report(Told(tell_size(rootfs)))
    return Made(ComposefsRoot(rootfs.digest, rootfs.version), rootfs, unpacked.system, rules, files)


def _choose_payload(
    unpacked: Unpacked, digests: Digests, options: BootOptions, read: Read, report: Report, why: Stale
) -> tuple[Variant | None, BootFiles]:
    """Return what boots the image, and by which rules it promises it; None is those that were asked for."""
    tree, architecture = unpacked.tree, unpacked.architecture
    if options.flow in ("auto", "sealed"):
        ukis = candidates(find_sealable(tree, read), unpacked.uki_layers)
        if sealed := find_sealed(ukis, digests, options, why):
            _warn_of_arguments(options, report)
            came_along = digests.came_along(sealed.variant)
            return sealed.variant, sealed_files(
                sealed, read, architecture, options.size_limit, report, came_along=came_along
            )
    karg = replace(karg_of(digests.asked, options.karg_style), insecure=options.allow_missing_verity)
    kargs = [karg]
    if options.both_hashes:
        kargs.append(ComposefsArg(digests.other(), karg.version, karg.insecure))
    if options.flow == "vendor":
        uki = choose_vendor(find_sealable(tree, read), options.uki)
        _warn_of_arguments(options, report)
        return None, vendor_files(uki, tree, read, architecture, karg, options, report)
    version = version_of(tree, unpacked.oci)
    if options.flow in WITHOUT_UKI:
        return None, type1_files(tree, architecture, version, kargs, options, read, report)
    return None, local_files(tree, architecture, version, promise_of(kargs, options), options, read, report)


def _stripped(unpacked: Unpacked, options: BootOptions, repository: Repository) -> Unpacked:
    """Return the image with a root file system that has no kernel, which is not what a UKI of its own promises."""
    ukis = find_sealable(unpacked.tree, object_reader(repository)) if options.flow in ("auto", "sealed") else ()
    if any(uki.sealed for uki in ukis):
        raise _without_effect("--strip-kernel")
    return replace(unpacked, system=without_kernel(unpacked.system))


def _without_effect(option: str) -> FlowError:
    return FlowError(f"{option}, and the image's own UKI, which is taken as it is", hint="add --flow local")


def _warn_of_arguments(options: BootOptions, report: Report) -> None:
    for option, given in (("--debug-shell", options.debug_shell), ("--both-hashes", options.both_hashes)):
        if given:
            raise _without_effect(option)
    if options.kargs or options.console:
        report(Warned("the image's UKI is taken as it is, without --karg and --console; `uki addon` adds to it"))
    if options.read != "ahead":
        report(
            Warned(f"the image's UKI is taken as it is, and with it how it reads: --read {options.read} has no effect")
        )
