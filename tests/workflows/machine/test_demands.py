"""A machine without any key follows a registry that serves something else one day. sbsign signs, skopeo moves tags."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oci2boot.cli.machine_text import show_status
from oci2boot.errors import DowngradeError, Error, OtherSignerError, UnsealedError
from oci2boot.workflows.machine.demands import Allowed
from oci2boot.workflows.machine.directories import install_directories
from oci2boot.workflows.machine.status import read_status
from oci2boot.workflows.machine.upgrade import UpgradeRequest, upgrade
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest
from tests.keys import Pair, make
from tests.oci.registries import docker_registry
from tests.status_schema import check_status
from tests.store.stored import everything
from tests.workflows.publishers import ANY_FILE_SYSTEM, LOOPBACK, Follower, Registry, follower
from tests.workflows.sealable import EFI, addon_stub, kernel, with_sections

SYSTEMD_BOOT = kernel()
"""What stands for a kernel there is Debian's boot loader."""
NEWEST = SYSTEMD_BOOT.replace(b"LoaderInfo: systemd-boot 2", b"LoaderInfo: systemd-boot 9")
LOADER = "boot/EFI/systemd/systemd-bootx64.efi"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make(folder, name) for name in ("publisher", "stranger")}


@pytest.fixture(scope="module")
def registry(keys: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("shop")
    with docker_registry(folder / "storage") as address:
        made = Registry(address, folder)
        made.release("old", "1.9", keys["publisher"])
        made.release("one", "1.10", keys["publisher"])
        made.release("two", "1.11", keys["publisher"])
        made.release("strange", "1.12", keys["stranger"])
        made.release("unsealed", "1.13", None)
        made.release("foreign", "9", keys["publisher"], name="IMAGE_ID=other\nIMAGE_VERSION=")
        made.release("silent", "9", keys["publisher"], name="IMAGE_ID=shop\nX=")
        for tag, version, said in (
            ("added", "1.10", b"shop.serial,2,Shop,serial,2.0,url"),
            ("revoked-addon", "1.11", b"shop.serial,1,Shop,serial,2.0,url"),
            ("older-addon", "1.11", b"shop.serial,2,Shop,serial,1.9,url"),
        ):
            path = f"boot/EFI/Linux/shop_{version}.efi.extra.d/serial.addon.efi"
            sections = [(b".cmdline", b"console=ttyS0"), (b".sbat", b"sbat,1,SBAT Version,sbat,1,url\n" + said + b"\n")]
            made.release(tag, version, keys["publisher"], boot=[{path: with_sections(addon_stub(), sections)}])
        path = "boot/EFI/Linux/shop_1.11.efi.extra.d/evil.addon.efi"
        evil = with_sections(
            addon_stub(), [(b".cmdline", b"init=/bin/sh"), (b".sbat", b"sbat,1,SBAT Version,sbat,1,url\n")]
        )
        made.release("unsigned-addon", "1.11", keys["publisher"], boot=[{path: evil}])
        loaders: dict[str, tuple[str, str, bytes]] = {
            "loader-of-stranger": ("1.11", "stranger", NEWEST),
            "next-of-stranger": ("1.12", "stranger", NEWEST.replace(b"systemd-boot 9", b"systemd-boot 8")),
            "loader-of-publisher": ("1.11", "publisher", SYSTEMD_BOOT),
        }
        for tag, (version, name, loader) in loaders.items():
            made.release(tag, version, keys["publisher"], boot=[{LOADER: keys[name].sbsign(loader)}])
        made.release("loader-in-usr", "1.13", keys["publisher"], extra=[{f"{EFI}/systemd-bootx64.efi": NEWEST}])
        strange = keys["stranger"].sbsign(evil)
        made.release("strange-addon", "1.11", keys["publisher"], boot=[{path: strange}])
        yield made


@pytest.fixture
def machine(registry: Registry, tmp_path: Path) -> Follower:
    registry.serve("one")
    made, image = follower(registry, tmp_path)
    assert image.flow == "sealed"
    return made


def refused(machine: Follower, kind: type[Error], tag: str) -> Error:
    """Return why the image is not deployed; the boot directory and what is deployed are as they were."""
    machine.registry.serve(tag)
    before = everything(machine.esp), everything(machine.root / "state/deploy")
    with pytest.raises(kind) as caught:
        machine.upgrade()
    assert (everything(machine.esp), everything(machine.root / "state/deploy")) == before
    return caught.value


def status(machine: Follower) -> Any:
    return check_status(read_status(machine.sysroot).to_json())


def forget_outcome(machine: Follower) -> None:
    """Leave the record as versions before wrote it."""
    for path in (machine.root / "state/deploy").glob("*/oci2boot.json"):
        facts = json.loads(path.read_text())
        del facts["options"]["outcome"]
        path.write_text(json.dumps(facts))


def test_the_publishers_next_image_is_taken(machine: Follower) -> None:
    """B.11, P.11: no key, no option."""
    machine.registry.serve("two")
    assert machine.upgrade().outcome == "deployed"
    first, _ = status(machine)["deployments"]
    assert first["outcome"] == {"kind": "sealed", "signed_by": ["CN=publisher"], "given_up": None}


@pytest.mark.parametrize("forgotten", [False, True], ids=["remembered", "by the UKI on the ESP"])
def test_what_is_less_than_the_one_before_is_refused(machine: Follower, forgotten: bool) -> None:
    """B.11, C.32, D.23: unsealed, of another's key, or older: each is what a registry could serve."""
    if forgotten:
        forget_outcome(machine)
    error = refused(machine, UnsealedError, "unsealed")
    assert error.message == (
        "this machine's image is sealed, signed by CN=publisher; the new one is local, signed by nobody"
    )
    error = refused(machine, OtherSignerError, "strange")
    assert error.message == (
        "this machine's image is sealed, signed by CN=publisher; the new one is sealed, signed by CN=stranger, by "
        "another key"
    )
    error = refused(machine, DowngradeError, "old")
    assert error.message == ("the new image is shop 1.9, older than 1.10, which this machine has")
    with pytest.raises(UnsealedError):
        machine.switch("unsealed")
    with pytest.raises(OtherSignerError):
        machine.switch("strange")
    with pytest.raises(DowngradeError):
        machine.switch("old")


def test_another_system_or_one_without_a_version_is_not_the_next_version(machine: Follower) -> None:
    """B.11: one key may sign several systems; `switch` is the word for another one."""
    assert refused(machine, DowngradeError, "foreign").message == (
        "this machine has shop 1.10, and the new image is other 9: it is another system"
    )
    assert refused(machine, DowngradeError, "silent").message == (
        "this machine has shop 1.10, and the new image does not say which version it is"
    )
    assert machine.switch("foreign").outcome == "deployed"


def test_an_image_without_a_version_has_no_protection_and_says_so(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B.11: there is nothing by which an older one could be known; where there is, nobody warns."""
    for tag, version in (("silent", None), ("one", "1.10")):
        registry.serve(tag)
        folder, told = tmp_path / tag, list[Event]()
        folder.mkdir()
        machine, _ = follower(registry, folder, report=told.append)
        warnings = [one.text for one in told if isinstance(one, Warned) and "IMAGE_VERSION" in one.text]
        expected = "has no IMAGE_VERSION in its os-release: no machine can refuse an older image in its place"
        assert warnings == ([] if version else [f"EFI/Linux/shop_9.efi {expected}"])
        assert [one["image_version"] for one in status(machine)["deployments"][0]["entries"]] == [version]
        show_status(read_status(machine.sysroot))
        shown = " ".join(capsys.readouterr().out.split())
        age = "and not older" if version else "it may be older, as this one has no IMAGE_VERSION"
        assert f"the next image must be sealed, signed by CN=publisher, too{',' if version else ';'} {age}" in shown
        machine.registry.serve("old")
        if version:
            with pytest.raises(DowngradeError):
                machine.upgrade()
        else:
            assert machine.upgrade().outcome == "deployed"


def test_an_installation_over_the_machine_is_held_to_it_too(machine: Follower, tmp_path: Path) -> None:
    """B.11: `install --target / --esp …` with an image that a registry served; nothing is written."""

    def install(tag: str, **allowed: bool) -> None:
        machine.registry.serve(tag)
        boot = BootOptions(ukify="builtin", allow_missing_verity=True)
        repo = tmp_path / "other"
        request = ConvertRequest(source=machine.registry.reference(), repo=repo, name=tag, options=LOOPBACK, boot=boot)
        convert(request, silent)
        options = Allowed(**allowed)
        install_directories(repo, tag, machine.root, machine.esp, ANY_FILE_SYSTEM, silent, allowed=options)

    kinds = {"unsealed": UnsealedError, "strange": OtherSignerError, "old": DowngradeError}
    before = everything(machine.esp), everything(machine.root / "state/deploy")
    for tag, kind in kinds.items():
        with pytest.raises(kind, match="this machine"):
            install(tag)
        assert (everything(machine.esp), everything(machine.root / "state/deploy")) == before
    install("two")
    first = status(machine)["deployments"][0]["outcome"]
    assert first == {"kind": "sealed", "signed_by": ["CN=publisher"], "given_up": None}
    install("unsealed", unsealed=True)
    assert status(machine)["deployments"][0]["outcome"]["given_up"] == "sealed, signed by CN=publisher"
    for path in (machine.root / "state/deploy").glob("*/oci2boot.json"):
        facts = json.loads(path.read_text())
        facts["options"]["outcome"] = 5
        path.write_text(json.dumps(facts))
    with pytest.raises(UnsealedError, match="cannot be read"):
        install("one")
    install("one", unsealed=True)


def test_an_addon_that_is_older_is_refused_too(registry: Registry, tmp_path: Path) -> None:
    """B.11: by its entries in .sbat, as shim reads them. No addon is bound to one UKI."""
    registry.serve("added")
    machine, _ = follower(registry, tmp_path)
    assert refused(machine, DowngradeError, "revoked-addon").message == (
        "the addon serial.addon.efi of the new image is shop.serial 2.0 (SBAT 1), older than shop.serial 2.0 (SBAT 2), "
        "which this machine has"
    )
    assert "shop.serial 1.9" in refused(machine, DowngradeError, "older-addon").message
    assert machine.upgrade(downgrade=True).outcome == "deployed"


def test_an_addon_of_somebody_else_is_refused(machine: Follower) -> None:
    """B.11, D.23: a registry may add to /boot of a sealed image, and its digest stays."""
    assert "signed by nobody" in refused(machine, UnsealedError, "unsigned-addon").message
    assert "signed by CN=stranger" in refused(machine, OtherSignerError, "strange-addon").message
    assert machine.upgrade(other_signer=True).outcome == "deployed"


def test_a_boot_loader_of_somebody_else_is_refused(machine: Follower) -> None:
    """B.11, D.23: it lies in /boot as well, runs before anything is verified, and may call itself the newest."""
    assert refused(machine, OtherSignerError, "loader-of-stranger").message == (
        "the boot loader EFI/BOOT/BOOTX64.EFI of the new image is signed by CN=stranger; the image is sealed, signed "
        "by CN=publisher"
    )
    machine.registry.serve("loader-of-publisher")
    assert machine.upgrade().outcome == "deployed"
    machine.registry.serve("loader-of-stranger")
    assert machine.upgrade(other_signer=True).outcome == "deployed"
    machine.registry.serve("next-of-stranger")  # allowed once, it is who signed the one before
    assert machine.upgrade().outcome == "deployed"


def test_a_boot_loader_of_the_promised_files_is_taken(machine: Follower) -> None:
    """B.11: distributions sign it by keys of their own, or not at all; the digest covers /usr."""
    assert NEWEST != SYSTEMD_BOOT
    machine.registry.serve("loader-in-usr")
    assert machine.upgrade().outcome == "deployed"
    assert (machine.esp / "EFI/systemd/systemd-bootx64.efi").read_bytes() == NEWEST


def test_a_refusal_is_planned_too(machine: Follower) -> None:
    machine.registry.serve("old")
    assert upgrade(UpgradeRequest(machine.sysroot, "download"), silent).outcome == "downloaded"
    with pytest.raises(DowngradeError):
        machine.upgrade(dry_run=True)
    assert machine.upgrade(dry_run=True, downgrade=True).outcome == "planned"


def test_what_is_allowed_is_done_and_said(machine: Follower) -> None:
    """B.11, C.32: a machine that was sealed and is not any more says so, until it is again."""
    told: list[Event] = []
    machine.registry.serve("unsealed")
    assert machine.upgrade(unsealed=True, report=told.append).outcome == "deployed"
    assert [one.text for one in told if isinstance(one, Warned) and "signed by nobody" in one.text]
    given_up = "sealed, signed by CN=publisher"
    first = status(machine)["deployments"][0]
    assert first["outcome"] == {"kind": "local", "signed_by": [], "given_up": given_up}
    machine.registry.serve("strange")
    assert machine.upgrade().outcome == "deployed"
    # A stranger's is not what was given up.
    assert status(machine)["deployments"][0]["outcome"]["given_up"] is None


def test_each_flag_allows_its_own(machine: Follower) -> None:
    machine.registry.serve("strange")
    with pytest.raises(OtherSignerError):
        machine.upgrade(unsealed=True)
    assert machine.upgrade(other_signer=True).outcome == "deployed"
    machine.registry.serve("two")
    with pytest.raises(OtherSignerError):
        machine.upgrade(downgrade=True)
    with pytest.raises(DowngradeError):
        machine.upgrade(other_signer=True)
    assert machine.upgrade(other_signer=True, downgrade=True).outcome == "deployed"


def test_a_machine_of_another_flow_may_become_sealed(machine: Follower) -> None:
    """More than before is no loss; its version is the publisher's, and not one that was made up here."""
    boot = BootOptions(flow="local", ukify="builtin")
    with pytest.raises(UnsealedError):
        machine.switch("two", boot=boot)
    assert machine.switch("two", boot=boot, unsealed=True).outcome == "deployed"
    machine.registry.serve("one")
    assert machine.switch("live", boot=BootOptions(flow="auto")).outcome == "deployed"
    assert status(machine)["deployments"][0]["outcome"] == {
        "kind": "sealed",
        "signed_by": ["CN=publisher"],
        "given_up": None,
    }


def test_a_record_that_nobody_wrote_is_refused(machine: Follower) -> None:
    (path,) = (machine.root / "state/deploy").glob("*/oci2boot.json")
    facts = json.loads(path.read_text())
    machine.registry.serve("two")
    for wrong in (5, {}, {"kind": "better", "signers": []}, {"kind": "local", "signers": [{}]}, {"kind": "local"}):
        facts["options"]["outcome"] = wrong
        path.write_text(json.dumps(facts))
        with pytest.raises(Error, match="cannot be read"):
            machine.upgrade()
