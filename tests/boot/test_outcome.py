"""What is less than something else, and by whose key: UKIs of Debian's stub, signed by sbsign; openssl names keys."""

import hashlib
import itertools
from pathlib import Path

import pytest

from oci2boot.boot.outcome import Kind, Outcome
from oci2boot.errors import FormatError, SignatureError
from tests.keys import Pair, make, openssl
from tests.workflows.sealable import addon, uki

PATH = "EFI/Linux/a.efi"
ORDER: tuple[Kind, ...] = ("type1", "local", "vendor", "sealed")
"""From what nothing signs to what the machine cannot make itself."""


def key_of(pair: Pair) -> str:
    public = openssl("x509", "-in", pair.path, "-noout", "-pubkey")
    return hashlib.sha256(openssl("pkey", "-pubin", "-outform", "DER", data=public)).hexdigest()


def test_what_is_remembered_of_a_signer_is_the_key(tmp_path: Path) -> None:
    """A certificate that is renewed for the same key is the same signer's; another of the same name is not."""
    first, other = make(tmp_path, "first"), make(tmp_path, "other", "-subj", "/CN=first")
    renewed = Pair(first.key, tmp_path / "renewed.crt")
    openssl("req", "-new", "-x509", "-key", first.key, "-subj", "/CN=renewed", "-days", "30", "-out", renewed.path)
    made = Outcome.of("sealed", {PATH: first.sbsign(uki("composefs=" + "ab" * 32))})
    assert [(one.subject, one.key) for one in made.signers] == [("CN=first", key_of(first))]
    assert Outcome.of("sealed", {PATH: renewed.sbsign(uki("quiet"))}).same_signers(made)
    assert not Outcome.of("sealed", {PATH: other.sbsign(uki("quiet"))}).same_signers(made)


def test_one_of_two_signers_is_enough_on_either_side(tmp_path: Path) -> None:
    """As where a publisher changes keys, and signs by both for a while."""
    old, new = make(tmp_path, "old"), make(tmp_path, "new")
    plain = uki("quiet")
    one, both, two = (
        Outcome.of("sealed", {PATH: data})
        for data in (old.sbsign(plain), new.sbsign(old.sbsign(plain)), new.sbsign(plain))
    )
    assert len(both.signers) == 2
    assert both.same_signers(one)
    assert two.same_signers(both)
    assert not two.same_signers(one)


def test_a_named_authority_makes_its_signers_one(tmp_path: Path) -> None:
    """`--db` with the certificate of an authority: its leaves change, and it says who they are."""
    authority, leaves = make(tmp_path, "authority"), []
    for name in ("a", "b"):
        leaf = Pair(tmp_path / f"{name}.key", tmp_path / f"{name}.crt")
        words: list[str | Path] = ["-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", leaf.key]
        openssl("req", "-new", *words, "-out", tmp_path / f"{name}.csr")
        issuer: list[str | Path] = ["-CA", authority.path, "-CAkey", authority.key, "-CAcreateserial"]
        openssl("x509", "-req", "-in", tmp_path / f"{name}.csr", *issuer, "-out", leaf.path)
        leaves.append(leaf)
    signed = [leaf.sbsign(uki("quiet")) for leaf in leaves]
    trusted = [Outcome.of("sealed", {PATH: data}, [authority.certificate]) for data in signed]
    assert trusted[1].same_signers(trusted[0])
    alone = [Outcome.of("sealed", {PATH: data}) for data in signed]
    assert not alone[1].same_signers(alone[0])


@pytest.mark.parametrize(("first", "second"), list(itertools.product(ORDER, ORDER)))
def test_each_kind_is_less_than_those_after_it(first: Kind, second: Kind, tmp_path: Path) -> None:
    """B.11: by the same key, too: what a machine can make itself is less than what it cannot."""
    signers = Outcome.of("sealed", {PATH: make(tmp_path, "key").sbsign(uki("quiet"))}).signers
    one, other = Outcome(first, signers), Outcome(second, signers)
    assert one.weaker_than(other) == (ORDER.index(first) < ORDER.index(second))
    assert Outcome(first).weaker_than(other)
    assert not Outcome("sealed", signers).weaker_than(Outcome(second))


def test_a_vendors_uki_has_two_signers(tmp_path: Path) -> None:
    """Its vendor's, and that of the addon which tells it the image; neither may change unseen."""
    vendor, ours, other = (make(tmp_path, name) for name in ("vendor", "ours", "other"))
    extra, loaded = f"{PATH}.extra.d/composefs.addon.efi", f"{PATH}.extra.d/serial.addon.efi"
    promise = addon("composefs=" + "ab" * 32)

    def made(of_uki: Pair, of_addon: Pair) -> Outcome:
        files = {PATH: of_uki.sbsign(uki("quiet")), extra: of_addon.sbsign(promise), loaded: addon("console=ttyS0")}
        return Outcome.of("vendor", files)

    before = made(vendor, ours)
    assert str(before) == "vendor, signed by CN=vendor and CN=ours"
    assert made(vendor, ours).same_signers(before)
    assert not made(other, ours).same_signers(before)
    assert not made(vendor, other).same_signers(before)


def test_a_promise_that_nobody_signed_is_weaker(tmp_path: Path) -> None:
    """B.11: the vendor's UKI is signed as before, and anybody may have written the addon; sealed needs none."""
    vendor, ours = make(tmp_path, "vendor"), make(tmp_path, "ours")
    extra, promise = f"{PATH}.extra.d/composefs.addon.efi", addon("composefs=" + "ab" * 32)
    signed = Outcome.of("vendor", {PATH: vendor.sbsign(uki("quiet")), extra: ours.sbsign(promise)})
    unsigned = Outcome.of("vendor", {PATH: vendor.sbsign(uki("quiet")), extra: promise})
    sealed = Outcome.of("sealed", {PATH: vendor.sbsign(uki("composefs=" + "ab" * 32))})
    assert unsigned.weaker_than(signed)
    assert not signed.weaker_than(unsigned)
    assert not signed.weaker_than(signed)
    assert not sealed.weaker_than(signed)


def test_a_signature_that_does_not_hold_is_an_error(tmp_path: Path) -> None:
    signed = bytearray(make(tmp_path, "key").sbsign(uki("quiet")))
    signed[0x1000] ^= 1
    with pytest.raises(SignatureError):
        Outcome.of("sealed", {PATH: bytes(signed)})


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Outcome.of("sealed", {PATH: make(tmp_path, "key").sbsign(uki("quiet"))})
    kept = Outcome("local", before=made)
    assert Outcome.from_json(made.to_json()) == made
    assert Outcome.from_json(kept.to_json()) == kept
    endless = made.to_json()
    endless["before"] = endless
    with pytest.raises(FormatError):
        Outcome.from_json(endless)
