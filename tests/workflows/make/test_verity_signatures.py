"""Root hashes that are signed: for the kernel and systemd, by each way to sign."""

import base64
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oci2boot.digest import OciDigest
from oci2boot.errors import Error, FormatError, ImageError, SignatureError
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot
from oci2boot.workflows.keys.signing import answer
from oci2boot.workflows.requests import SigningOptions
from tests.witness import program
from tests.workflows.verity_images import (
    BUILTIN_OPTIONS,
    HASH_ONLY,
    check_signature,
    convert_verity,
    credential,
    make_signing,
    object_of,
    uki_of,
    words_of,
)

pytestmark = pytest.mark.usefixtures("erofs_utils")


def test_the_root_hash_is_signed_for_the_kernel_and_for_systemd(
    source: Reference, signing: SigningOptions, tmp_path: Path
) -> None:
    """K1.1, K0.12; UAPI group, Discoverable Partitions Specification, for the partition"""
    repo = tmp_path / "repo"
    bootable = convert_verity(source, repo, VerityOptions(), boot=replace(BUILTIN_OPTIONS, signing=signing))
    check_signature(repo, bootable, signing, tmp_path)
    partition = object_of(repo, bootable, "signature").read_bytes()
    assert len(partition) == 16384
    document = json.loads(partition.rstrip(b"\0"))
    der = subprocess.check_output([program("openssl"), "x509", "-in", signing.certificate, "-outform", "DER"])
    assert isinstance(bootable.root, DmVerityRoot)
    assert document == {
        "rootHash": str(bootable.root.root_hash),
        "certificateFingerprint": OciDigest.of(der).hex,
        "signature": base64.b64encode(credential(repo, bootable).read_bytes()).decode(),
    }
    words = words_of(repo, bootable)
    assert "dm_verity.require_signatures=1" in words
    assert "systemd.verity_root_options=root-hash-signature=/.extra/credentials/roothash.p7s.cred" in words
    (tmp_path / "uki.efi").write_bytes(uki_of(repo, bootable))
    subprocess.run([program("sbverify"), "--cert", signing.certificate, tmp_path / "uki.efi"], check=True)


def test_the_root_hash_can_have_a_key_of_its_own(source: Reference, signing: SigningOptions, tmp_path: Path) -> None:
    """K1.1"""
    other = make_signing(tmp_path, "other")
    bootable = convert_verity(
        source, tmp_path / "repo", VerityOptions(), other, replace(BUILTIN_OPTIONS, signing=signing)
    )
    check_signature(tmp_path / "repo", bootable, other, tmp_path)


def without_key(signing: SigningOptions, **way: Any) -> SigningOptions:
    return replace(signing, key=None, **way)


def by_command(signing: SigningOptions, _: Path, run: Callable[[SigningOptions], Bootable]) -> Bootable:
    return run(without_key(signing, command=f"{program('openssl')} dgst -sha256 -sign {signing.key}"))


def by_request(signing: SigningOptions, folder: Path, run: Callable[[SigningOptions], Bootable]) -> Bootable:
    request, response = folder / "request.json", folder / "response.json"
    asking = run(without_key(signing, request=request))
    assert isinstance(asking.root, DmVerityRoot)
    assert asking.root.signature_object is None
    (item,) = (one for one in json.loads(request.read_text())["items"] if one["kind"] == "root-hash")
    assert item["root_hash"] == str(asking.root.root_hash)
    assert base64.b64decode(item["to_be_signed"]).decode() == str(asking.root.root_hash)
    assert signing.key
    answer(request, Path(signing.key), None, response)
    return run(without_key(signing, response=response))


def test_what_switches_verification_off_is_not_signed(
    source: Reference, signing: SigningOptions, tmp_path: Path
) -> None:
    """K1.21: whether it is an option or a kernel argument; unsigned, for debugging, it may be"""
    boot = replace(BUILTIN_OPTIONS, signing=signing)
    debugging = replace(HASH_ONLY, options=("ignore-corruption",))
    with pytest.raises(FormatError, match="switches verification off"):
        convert_verity(source, tmp_path / "repo", debugging, boot=boot)
    assert not (tmp_path / "repo").exists()
    karg = ("systemd.verity_root_options=ignore-corruption",)
    with pytest.raises(FormatError, match="switches verification off"):
        convert_verity(source, tmp_path / "repo", HASH_ONLY, boot=replace(boot, kargs=karg))
    with pytest.raises(ImageError, match="from the command line alone"):
        convert_verity(source, tmp_path / "repo", HASH_ONLY, boot=replace(BUILTIN_OPTIONS, kargs=karg))
    for options, told in ((debugging, True), (HASH_ONLY, False)):
        bootable = convert_verity(source, tmp_path / "repo", options)
        assert (karg[0] in words_of(tmp_path / "repo", bootable)) == told
        assert (b"usr/lib/oci2boot/verity-debug" in uki_of(tmp_path / "repo", bootable)) == told


def test_a_key_of_another_certificate_is_refused_before_any_work(
    source: Reference, signing: SigningOptions, tmp_path: Path
) -> None:
    """K1.2"""
    other = make_signing(tmp_path, "other")
    with pytest.raises(SignatureError, match="does not belong to the certificate"):
        convert_verity(source, tmp_path / "repo", VerityOptions(), replace(signing, key=other.key))
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("way", [by_command, by_request])
def test_every_way_to_sign_gives_the_same_bytes(
    source: Reference,
    signing: SigningOptions,
    way: Callable[[SigningOptions, Path, Callable[[SigningOptions], Bootable]], Bootable],
    tmp_path: Path,
) -> None:
    """B.5: UKI, boot loader and root hash in one handshake"""

    def run(signing: SigningOptions) -> Bootable:
        return convert_verity(
            source, tmp_path / "repo", VerityOptions(), boot=replace(BUILTIN_OPTIONS, signing=signing)
        )

    assert way(signing, tmp_path, run) == run(signing)


def test_a_request_that_lies_about_the_root_hash_is_not_signed(
    source: Reference, signing: SigningOptions, tmp_path: Path
) -> None:
    """B.5"""
    request = tmp_path / "request.json"
    convert_verity(source, tmp_path / "repo", VerityOptions(), without_key(signing, request=request))
    document = json.loads(request.read_text())
    (item,) = document["items"]
    assert signing.key
    for change in ({"root_hash": "0" * 64}, {"kind": "image"}, {"kind": "text"}, {"root_hash": 5}):
        request.write_text(json.dumps({**document, "items": [{**item, **change}]}))
        with pytest.raises(Error):
            answer(request, Path(signing.key), None, tmp_path / "response.json")


def test_named_certificates_must_be_behind_what_boots(
    source: Reference, signing: SigningOptions, tmp_path: Path
) -> None:
    """C.35: `--db` was passed over in silence in this mode."""
    other = make_signing(tmp_path, "other")
    boot = replace(BUILTIN_OPTIONS, db=(other.certificate,))
    with pytest.raises(SignatureError, match=r"EFI/.* is unsigned"):
        convert_verity(source, tmp_path / "repo", HASH_ONLY, boot=boot)
    with pytest.raises(SignatureError, match="nothing that would be installed is signed by CN=other"):
        convert_verity(source, tmp_path / "repo", HASH_ONLY, boot=replace(boot, signing=signing))
    named = replace(BUILTIN_OPTIONS, db=(other.certificate, signing.certificate), signing=signing)
    assert convert_verity(source, tmp_path / "repo", HASH_ONLY, boot=named).options["signed"]
