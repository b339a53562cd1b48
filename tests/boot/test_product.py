"""Which of two boot loaders is newer: Debian's programs, and the same with the numbers of other releases in them."""

import re

import pytest

from oci2boot.boot.product import Product
from tests.boot.loaders import bookworm, loader, shim


def test_systemd_boot_is_known_by_the_mark_that_bootctl_reads() -> None:
    """Debian 12's has another name in .sbat than Debian 13's, and is the same program."""
    new, old = Product.of(loader()), Product.of(bookworm())
    assert (new.name, old.name) == ("systemd-boot", "systemd-boot")
    assert (new.version, old.version) == ("257", "252")
    assert new.compare(old) == (1, "257", "252")
    assert old.compare(new)[0] < 0


def test_a_distributions_own_release_counts() -> None:
    older = re.sub(rb"257\.13-1~deb13u1", b"257.08-1~deb13u1", loader())
    assert Product.of(loader()).compare(Product.of(older)) == (1, "257.13-1~deb13u1", "257.08-1~deb13u1")


def test_shims_version_is_its_vendors() -> None:
    """The version in shim's own entry is 1 in all of them."""
    older = re.sub(rb"(shim\.debian,1,Debian,shim,)16\.1", rb"\g<1>15.8", shim(), count=1)
    assert older != shim()
    assert Product.of(shim()).name == "shim"
    assert Product.of(shim()).compare(Product.of(older)) == (1, "16.1", "15.8")
    revoked = re.sub(rb"shim,4,UEFI shim,shim,1", rb"shim,3,UEFI shim,shim,1", shim(), count=1)
    assert Product.of(shim()).compare(Product.of(revoked))[0] > 0


@pytest.mark.parametrize("data", [b"", b"MZ", b"#### LoaderInfo: systemd-boot 257 ####"])
def test_what_is_no_program_says_nothing(data: bytes) -> None:
    assert Product.of(data) == Product("")
