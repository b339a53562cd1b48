"""What this machine's firmware would refuse never gets into its boot directory. virt-firmware writes the variables."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from oci2boot.errors import FormatError, SignatureError
from oci2boot.workflows.machine.upgrade import Upgraded
from oci2boot.workflows.progress import Event, Warned
from tests.boot.efivars import Variables, lists, revoked_certificate
from tests.boot.loaders import loader
from tests.keys import Pair, make
from tests.oci.registries import docker_registry
from tests.store.stored import everything
from tests.workflows.publishers import Follower, Registry, follower
from tests.workflows.sealable import EFI, addon

SIGNED = f"{EFI}/systemd-bootx64.efi.signed"
UKI = "EFI/Linux/shop_1.11.efi"
LEVEL = b"sbat,1,2025051000\nshim,4\ngrub,5\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make(folder, name) for name in ("publisher", "vendor")}


@pytest.fixture(scope="module")
def registry(keys: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder, key = tmp_path_factory.mktemp("shop"), keys["publisher"]
    signed: list[dict[str, bytes | Path]] = [{SIGNED: key.sbsign(loader())}]
    with docker_registry(folder / "storage") as address:
        made = Registry(address, folder)
        made.release("one", "1.10", key, signed)
        made.release("two", "1.11", key, signed)
        made.release("unsigned-loader", "1.11", key)
        added = f"boot/{UKI}.extra.d/debug.addon.efi"
        made.release("unsigned-addon", "1.11", key, signed, [{added: addon("debug")}])
        made.release("no-sbat", "1.11", key, signed, [{added: key.sbsign(addon("debug"))}])
        yield made


@pytest.fixture
def machine(registry: Registry, tmp_path: Path) -> Follower:
    registry.serve("one")
    made, _ = follower(registry, tmp_path)
    registry.serve("two")
    return made


@pytest.fixture
def variables(keys: dict[str, Pair], tmp_path: Path) -> Variables:
    made = Variables(tmp_path / "efivars")
    made.secure_boot()
    made.db(keys["publisher"])
    return made


def upgraded(machine: Follower, variables: Variables, *, unsealed: bool = False) -> Upgraded:
    return machine.upgrade(efivars=variables.folder, unsealed=unsealed)


def refused(machine: Follower, variables: Variables, *, unsealed: bool = False) -> str:
    before = everything(machine.esp), everything(machine.root / "state")
    with pytest.raises(SignatureError) as caught:
        upgraded(machine, variables, unsealed=unsealed)
    assert (everything(machine.esp), everything(machine.root / "state")) == before
    return caught.value.message


def test_what_the_firmware_trusts_is_deployed(machine: Follower, variables: Variables) -> None:
    """P.7, P.11"""
    assert upgraded(machine, variables).outcome == "deployed"


def test_without_secure_boot_nothing_is_asked(machine: Follower, variables: Variables, keys: dict[str, Pair]) -> None:
    variables.db(keys["vendor"])
    variables.secure_boot(on=False)
    assert upgraded(machine, variables).outcome == "deployed"


def test_a_signer_that_is_not_in_db_is_named(machine: Follower, variables: Variables, keys: dict[str, Pair]) -> None:
    """B.11, P.7: with what the firmware trusts."""
    variables.db(keys["vendor"])
    assert refused(machine, variables) == (
        f"this machine's Secure Boot would not start {UKI}: it is signed by CN=publisher, and the firmware trusts "
        "CN=vendor"
    )
    (variables.folder / "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f").unlink()
    assert refused(machine, variables).endswith("and the firmware trusts nobody")


@pytest.mark.parametrize("how", ["certificate", "hash of the certificate"])
def test_what_dbx_revokes_is_refused(how: str, machine: Follower, variables: Variables, keys: dict[str, Pair]) -> None:
    publisher = keys["publisher"]
    tbs = x509.load_pem_x509_certificate(publisher.path.read_bytes()).tbs_certificate_bytes
    if how == "certificate":
        variables.dbx(keys["vendor"], publisher)
    else:
        variables.dbx(keys["vendor"], more=revoked_certificate(hashlib.sha256(tbs).digest()))
    assert refused(machine, variables) == (
        f"this machine's Secure Boot would not start {UKI}: the firmware has revoked the certificate of CN=publisher"
    )


def test_a_revocation_of_a_kind_that_is_not_known_is_named(machine: Follower, variables: Variables) -> None:
    told: list[Event] = []
    unknown = revoked_certificate(bytes(32)).replace(
        bytes.fromhex("92a4d23bc0967940b420fcf98ef103ed"), bytes.fromhex("12a56c826cf7ad4bb6b47c5f0e8b7b16")
    )
    variables.dbx(more=unknown)
    assert machine.upgrade(efivars=variables.folder, report=told.append).outcome == "deployed"
    assert [one.text for one in told if isinstance(one, Warned) and "not understood here" in one.text]


def test_every_program_is_held_to_it(machine: Follower, variables: Variables) -> None:
    """Loader and addons too: an addon that the stub would pass over, a loader that would not start."""
    machine.registry.serve("unsigned-addon")
    assert refused(machine, variables, unsealed=True).startswith(
        f"this machine's Secure Boot would not start {UKI}.extra.d/debug.addon.efi: it is signed by nobody"
    )
    machine.registry.serve("unsigned-loader")
    assert refused(machine, variables).startswith(
        "this machine's Secure Boot would not start EFI/BOOT/BOOTX64.EFI: it is signed by nobody"
    )


def test_what_is_in_the_boot_directory_already_is_held_to_it(
    machine: Follower, variables: Variables, keys: dict[str, Pair]
) -> None:
    """It is what would boot next; a loader that is there started this machine."""
    for tag in ("unsigned-addon", "two"):
        machine.registry.serve(tag)
        assert machine.upgrade(unsealed=True).outcome == "deployed"
    machine.registry.serve("unsigned-addon")
    assert "debug.addon.efi: it is signed by nobody" in refused(machine, variables, unsealed=True)
    variables.db(keys["vendor"])
    assert f"would not start {UKI}: it is signed by CN=publisher" in refused(machine, variables, unsealed=True)
    assert machine.upgrade(unsealed=True).outcome == "deployed"


def test_behind_a_shim_its_owners_keys_count(machine: Follower, variables: Variables, keys: dict[str, Pair]) -> None:
    """P.9: MokListRT and MokListXRT, as shim leaves them for who comes after it."""
    variables.db(keys["vendor"])
    variables.shim("SbatLevelRT", LEVEL)
    variables.shim("MokListRT", lists(keys["vendor"]))
    assert "it is signed by CN=publisher, and the firmware trusts CN=vendor" in refused(machine, variables)
    variables.shim("MokListRT1", lists(keys["publisher"]))
    variables.shim("MokListXRT", lists(keys["publisher"]))
    assert "has revoked the certificate of CN=publisher" in refused(machine, variables)
    variables.shim("MokListXRT", lists())
    assert upgraded(machine, variables).outcome == "deployed"


def test_below_the_level_of_sbat_nothing_starts(machine: Follower, variables: Variables) -> None:
    """P.9: Debian's stub is of generation 1 of systemd-stub."""
    variables.shim("SbatLevelRT", LEVEL + b"systemd-stub,2\n")
    message = refused(machine, variables)
    assert f"would not start {UKI}: it is systemd-stub 257 (SBAT 1), and generations below 2 are revoked" in message
    variables.shim("SbatLevelRT", LEVEL)
    machine.registry.serve("no-sbat")
    assert ".extra.d/debug.addon.efi: it has no section .sbat" in refused(machine, variables)
    variables.shim("MokSBStateRT", b"\1")
    assert upgraded(machine, variables).outcome == "deployed"


@pytest.mark.parametrize("name", ["db", "dbx"])
def test_variables_that_cannot_be_read_are_one_sentence(name: str, machine: Follower, variables: Variables) -> None:
    variables.put(name, "d719b2cb-3d3a-4596-a3bc-dad00e67656f", b"\xff" * 40)
    with pytest.raises(FormatError):
        upgraded(machine, variables)


def test_an_installation_is_held_to_it_too(
    registry: Registry, variables: Variables, keys: dict[str, Pair], tmp_path: Path
) -> None:
    """P.7, P.8: beside the system that runs; nothing is written."""
    registry.serve("one")
    variables.db(keys["vendor"])
    with pytest.raises(SignatureError, match="it is signed by CN=publisher, and the firmware trusts CN=vendor"):
        follower(registry, tmp_path, efivars=variables.folder)
    assert list((tmp_path / "esp").iterdir()) == []
