"""The mode `verity`: the same tree as one EROFS image under dm-verity, and a UKI with its root hash."""

from collections.abc import Iterator
from dataclasses import replace

from oci2boot.boot.dmverity import DmVerityPromise, signature_path
from oci2boot.boot.roothash import pack_partition
from oci2boot.errors import FormatError, SignatureError, ToolError
from oci2boot.formats import cmdline
from oci2boot.rootfs.composefs import build_rootfs
from oci2boot.rootfs.dmverity import VerityOptions, VerityRootfs, check_sealed, merge_arguments, plain_word
from oci2boot.rootfs.mkfs import PROGRAM, check_mkfs
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository
from oci2boot.system.run import find_program, said_by
from oci2boot.workflows.keys.signing import check_root_signing, read_certificate, sign_files, sign_root
from oci2boot.workflows.make.canonical import canonical_tree
from oci2boot.workflows.make.dm_image import build_verity, recorded
from oci2boot.workflows.make.payload import BootFiles, Made, local_files, signed_files, version_of, with_loader
from oci2boot.workflows.make.published import attach_published, published_root
from oci2boot.workflows.make.signers import check_db
from oci2boot.workflows.make.unpack import Unpacked, object_reader
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import BootOptions, ConvertRequest


def check_verity_request(request: ConvertRequest, options: VerityOptions) -> None:
    """Refuse what cannot be, before anything is fetched."""
    if not request.tree.bootable:
        raise FormatError(
            "--plain and --mode verity: a root partition holds the form that boots", hint="leave one of the two out"
        )
    if request.boot:
        _check_boot(request.boot)
    if options.signature:
        if request.root_signing:
            check_root_signing(request.root_signing)
        elif not (request.boot and request.boot.db):
            raise SignatureError(
                "the root hash must be signed, but there is no key",
                hint="--secureboot-key and --secureboot-certificate name one, --db whose signature may be beside the "
                "image; --no-verity-signature does without",
            )
    if _sealed(request, options):
        check_sealed(options.options)
    if options.compression.algorithms:
        if not find_program(PROGRAM):
            raise ToolError(f"{PROGRAM} is not installed", hint="install erofs-utils, or --compression none")
        check_mkfs(said_by([PROGRAM, "--version"]), options.compression)


def _check_boot(boot: BootOptions) -> None:
    if boot.flow not in ("auto", "local"):
        raise FormatError(
            f"--flow {boot.flow} and --mode verity: only a UKI that is built here has the root hash",
            hint="leave --flow out",
        )
    if boot.karg_style != "composefs":
        raise FormatError("--karg-style is of --mode composefs", hint="--verity-karg says how the root hash is told")
    if boot.allow_missing_verity:
        raise FormatError("--allow-missing-verity is of --mode composefs", hint="--no-verity leaves dm-verity out")
    if boot.both_hashes:
        raise FormatError("--both-hashes is of --mode composefs", hint="--verity-hash says which one the hash tree has")
    if boot.read != "ahead":
        raise FormatError("--read is of --mode composefs: dm-verity verifies each block as it is read")
    cmdline.join(boot.kargs)
    # What the image's own values are is not known yet, only that these contradict each of them.
    merge_arguments([word for word in boot.kargs if plain_word(word).startswith(("root=", "composefs"))], ["roothash="])


def _sealed(request: ConvertRequest, options: VerityOptions) -> bool:
    return options.signature or bool(request.boot and (request.boot.signing or request.boot.db))


def make_verity(
    request: ConvertRequest, options: VerityOptions, unpacked: Unpacked, repository: Repository, report: Report
) -> Made:
    """Store the image's root file system as a partition's content, and build what boots it."""
    read = object_reader(repository)
    places = [overlay.path.encode() for overlay in options.overlays]
    tree = canonical_tree(unpacked.system, request.tree, read, lambda text: report(Warned(text)), places)
    listed = build_rootfs(tree, request.tree.erofs_version, repository.algorithm)
    root = build_verity(tree, options, listed.digest, repository, report)
    for note in _notes(root, options):
        report(Warned(note))
    manifest = unpacked.oci.manifest_digest if unpacked.oci else None
    signature, signer = None, None
    if options.signature and root.root_hash:
        if request.root_signing:
            signature = sign_root(root.root_hash, request.root_signing, report)
            signer = read_certificate(request.root_signing.certificate)
        else:
            signature, signer = published_root(request, manifest, root.root_hash, report)
    files = BootFiles()
    if request.boot:
        version = version_of(unpacked.tree, unpacked.oci)
        promise = DmVerityPromise(root, options, _sealed(request, options))
        files = local_files(unpacked.tree, unpacked.architecture, version, promise, request.boot, read, report)
        if signature:
            files = _with_signature(files, signature)
        files = with_loader(files, unpacked.tree, unpacked.architecture, request.boot, read, report)
        files = attach_published(files, request, manifest, report)
    files = _sign(files, root, request, report)
    if request.boot:
        check_db(files, request.boot)
    signed = None
    if signature and signer and root.root_hash:
        with ObjectBatch(repository) as batch:
            signed = batch.add(pack_partition(root.root_hash, signature, signer))
    return Made(recorded(root, options, listed, signed), listed, tree, request.tree, files)


def _notes(root: VerityRootfs, options: VerityOptions) -> Iterator[str]:
    if root.area and root.area.data_blocks * root.area.parameters.data_block < root.image.size:
        yield f"--verity-blocks {options.blocks}: the machine cannot read what lies behind these blocks"
    if root.root_hash is None:
        yield "nothing guards the root file system: anyone who can write to the disk can change it unseen"


def _with_signature(files: BootFiles, signature: bytes) -> BootFiles:
    assert files.esp
    (uki,) = files.esp
    return replace(files, esp={**files.esp, signature_path(uki): signature})


def _sign(files: BootFiles, root: VerityRootfs, request: ConvertRequest, report: Report) -> BootFiles:
    """Sign the boot files; who is asked for these signatures is asked for that of the root hash at the same time."""
    signing = request.boot.signing if request.boot else None
    asked = request.root_signing and request.root_signing.request
    if asked and request.root_signing != signing:
        assert request.root_signing
        sign_files({}, request.root_signing, report, root.root_hash)
    return signed_files(files, signing, report, root.root_hash if asked and signing == request.root_signing else None)
