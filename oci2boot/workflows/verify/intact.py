"""Is it intact? The same checks of whatever a reader found, in either mode.

What boot files promise is here, they are those that were installed, somebody signed them; and a manifest describes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from oci2boot.boot.dmverity import signature_path
from oci2boot.boot.names import is_program, uncounted
from oci2boot.boot.roothash import check_root_hash
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, FormatError, SignatureError
from oci2boot.formats import authenticode, pe
from oci2boot.formats.fsverity import measure
from oci2boot.formats.x509 import Certificate
from oci2boot.store.images import Bootable
from oci2boot.store.roots import Mode
from oci2boot.tree.diff import first_of
from oci2boot.workflows.verify.checks import NAMED_MAX, Checks
from oci2boot.workflows.verify.contents import Contents, Root, RootSignature
from oci2boot.workflows.verify.erofs_files import FSCK
from oci2boot.workflows.verify.esp import EspFiles, find_root_signature
from oci2boot.workflows.verify.manifest import Manifest
from oci2boot.workflows.verify.promises import DevicePromise, Digest, Promise, Start

_COMPARED: Final[Mapping[Mode, str]] = {
    "composefs": "every field of every path, contents by their fs-verity digests",
    "verity": f"type, size and content of every file, by {FSCK}",
}


def check_contents(
    contents: Contents, trusted: Sequence[Certificate], manifest: Manifest | None, checks: Checks
) -> None:
    if contents.esp is not None:
        for start in contents.starts:
            with checks.attempt(f"{start.kind} {start.path}"):
                _check_start(start, contents.roots, checks)
        if not contents.starts:
            checks.failed("UKI", "there is none that could be booted")
        if contents.roots is None:
            checks.unchecked("boot files", "the record of what was installed is encrypted")
        else:
            _check_installed(contents.esp, contents.state.records, checks)
        _check_programs(contents.esp, trusted, checks)
    if contents.mode == "verity":
        _check_root_hashes(contents, trusted, checks)
    deployments = ", ".join(name[:12] for name in contents.state.deployments) or "none"
    for place in contents.state.places:
        said = f"what the machine changed there is written and read unverified (deployments: {deployments})"
        checks.unchecked(place, said)
    if manifest:
        _check_manifest(contents, manifest, checks)


# What can be started


def _check_start(start: Start, roots: Mapping[Digest, Root] | None, checks: Checks) -> None:
    """Hold a UKI or type 1 entry to its word: each root file system that it may boot is here."""
    if start.broken:
        raise start.broken
    name = f"{start.kind} {start.path}"
    problems = list(dict.fromkeys(problem for promise in start.promises for problem in _broken(promise, roots)))
    promised = " and ".join(dict.fromkeys(word for promise in start.promises for word in promise.words))
    if roots is None and not problems:
        checks.unchecked(name, f"whether the root file system {promised} is here cannot be seen")
    else:
        checks.verdict(name, problems, f"{promised} is a root file system that is here")
    for addon in start.addons:
        if decisive := addon.decisive():
            checks.unchecked(f"addon {addon.name} of {start.path}", decisive)
    if start.kind == "entry":
        checks.unchecked(f"command line of {start.path}", "nothing signs it or the initramfs beside it")


def _broken(promise: Promise, roots: Mapping[Digest, Root] | None) -> Iterator[str]:
    yield from promise.faults
    if roots is None or not promise.digests:
        return
    here = [digest for digest in promise.digests if digest in roots]
    if not here:
        yield f"it promises {' and '.join(promise.words)}, and no such root file system is here"
    yield from (f"the root file system {digest} {problem}" for digest in here if (problem := roots[digest].problem))


# What was installed


def _check_installed(files: EspFiles, records: Sequence[Bootable], checks: Checks) -> None:
    """Compare the files with those that were installed, which the deployments' records name by digest."""
    expected: dict[str, set[VerityDigest]] = {}
    shown: dict[str, str] = {}
    for record in records:
        for path, digest in record.esp.items():
            expected.setdefault(_lasting(path), set()).add(digest)
            shown[_lasting(path)] = path
    here = {_lasting(path): read for path, read in files.items()}
    failures = []
    for key, digests in sorted(expected.items()):
        name = f"boot file {shown[key]}"
        if key not in here:
            failures.append((name, "it was installed, and is gone"))
            continue
        try:
            data = here[key]()
            if not any(measure(data, digest.algorithm) == digest for digest in digests):
                failures.append((name, "its bytes are not those that were installed"))
        except Error as error:
            failures.append((name, error.message))
    if expected:
        checks.each(failures, "boot files", f"{len(expected)} files are what was installed")
    else:
        checks.unchecked("boot files", "there is no record of what was installed")


def _lasting(path: str) -> str:
    """Return what a path on FAT keeps when letters change case and boots are counted."""
    return uncounted(path).lower()


# Who signed


def _check_programs(files: EspFiles, trusted: Sequence[Certificate], checks: Checks) -> None:
    """Check every EFI program against the certificates of the firmware's db; without any, only that signatures hold."""
    for path in filter(is_program, files):
        name = f"signature {path}"
        with checks.attempt(name):
            data = files[path]()
            if not pe.parse(data).signed:
                if trusted:
                    raise SignatureError("it is not signed: with Secure Boot, the firmware refuses it")
                checks.unchecked(name, "it is not signed")
                continue
            signatures = authenticode.verify(data, trusted)
            signers = ", ".join(signature.signer.subject for signature in signatures)
            if any(signature.anchor for signature in signatures):
                checks.ok(name, f"signed by {signers}")
            elif trusted:
                raise SignatureError(f"signed by {signers}: no certificate of --db vouches for that")
            else:
                checks.unchecked(name, f"signed by {signers}; --db says what to trust")


def _check_root_hashes(contents: Contents, trusted: Sequence[Certificate], checks: Checks) -> None:
    """Check the signatures that the kernel may be given: those beside UKIs, and those in partitions."""
    promised = {digest for start in contents.starts for promise in start.promises for digest in promise.digests}
    demanded = False
    found = list(contents.signatures)
    for start in contents.starts:
        if start.kind == "UKI":
            promises = [promise for promise in start.promises if isinstance(promise, DevicePromise)]
            demanded = demanded or any(promise.signed for promise in promises)
            found += _beside(start.path, promises, contents.esp or {}, checks)
    for signature in found:
        name = f"signature {signature.place}"
        with checks.attempt(name):
            if signature.root_hash not in promised:
                raise SignatureError(f"it is of the root hash {signature.root_hash}, which no UKI promises")
            signer = check_root_hash(signature.root_hash, signature.read(), trusted)
            said = f"the root hash {signature.root_hash} is signed by {signer.subject}"
            checks.ok(name, said) if trusted else checks.unchecked(name, f"{said}; --db says what to trust")
    if not found and not demanded:
        checks.unchecked("signature of the root hash", "there is none: only the UKI that promises it vouches for it")


def _beside(uki: str, promises: Sequence[DevicePromise], files: EspFiles, checks: Checks) -> list[RootSignature]:
    """Return what the stub hands to the initramfs, for each root hash that the UKI promises."""
    path = find_root_signature(files, uki)
    if path is None:
        if any(promise.signed for promise in promises):
            checks.failed(f"signature {signature_path(uncounted(uki))}", "the kernel demands it, and it is not there")
        return []
    hashes = dict.fromkeys(one for promise in promises for one in promise.root_hashes)
    return [RootSignature(path, root_hash, files[path]) for root_hash in hashes]


# What it was made from


def _check_manifest(contents: Contents, manifest: Manifest, checks: Checks) -> None:
    """Compare the root file system that the manifest names, or else one that is here instead."""
    roots = contents.roots or {}
    promised = manifest.digest(contents.mode)
    checks.verdict("manifest digest", _digest_problems(promised, roots), f"{promised}, {len(manifest.paths)} paths")
    here = sorted(roots, key=lambda one: (one != promised, roots[one].problem is not None, str(one)))
    for digest in here[:1]:
        with checks.attempt("manifest contents"):
            _compare(roots[digest], manifest, _COMPARED[contents.mode], checks)


def _digest_problems(promised: Digest | None, roots: Mapping[Digest, Root]) -> list[str]:
    if promised is None:
        return ["the manifest names no root hash: it is not of an image under dm-verity"]
    if promised not in roots:
        here = ", ".join(map(str, roots)) or "no root file system"
        return [f"the manifest is of {promised}, here is {here}"]
    return [] if roots[promised].intact else [f"what is here is not what {promised} stands for"]


def _compare(root: Root, manifest: Manifest, compared: str, checks: Checks) -> None:
    if root.differences is None:
        raise FormatError(f"it {root.problem or 'cannot be read'}")
    first, more = first_of(root.differences(manifest), NAMED_MAX)
    for one in first:
        checks.failed(f"manifest {one.path}", f"{one.field}: {one.a} in the manifest, {one.b} here")
    if more:
        checks.failed("manifest", f"{more} more differences")
    if not first:
        checks.ok("manifest contents", compared)
