"""What is said of kernels, initramfs, UKIs, boot loader and signatures: of images that have it and that have not."""

from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.boot.payload import WARN_SIZES
from oci2boot.formats import cpio
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.workflows.lint.run import run_lints
from oci2boot.workflows.requests import BootOptions
from tests.boot.debian import package
from tests.boot.initrds import SYSTEMD
from tests.keys import Pair, make
from tests.workflows.lint.images import MODULES, Changes, found, subject
from tests.workflows.sealable import BUILTIN, CONFIG, EFI, KVER, addon, kernel, stub, uki

PROMISE = f"composefs={'ab' * 32} console=ttyS0"
UKI = "boot/EFI/Linux/image.efi"
UNIT = "usr/lib/systemd/system/bootc-root-setup.service"
# Of the unit that bootc 1.17 has, what decides.
BOOTC = "[Unit]\nConditionKernelCommandLine=composefs\nOnFailure=emergency.target\n[Service]\nType=oneshot\n"
CLOSED = "[Unit]\nConditionKernelCommandLine=\nFailureAction=reboot-force\n"
OLD = stub().replace(b"LoaderInfo: systemd-stub 257", b"LoaderInfo: systemd-stub 254")


def initramfs(**units: str) -> bytes:
    names = {"unit": UNIT, "drop_in": f"{UNIT}.d/50-closed.conf"}
    return cpio.write([*SYSTEMD, *(cpio.file(names[name].encode(), text.encode()) for name, text in units.items())])


def kernel_of(version: str) -> Changes:
    modules = {"vmlinuz": kernel(), "config": CONFIG, "modules.builtin": BUILTIN, "modules.dep": b""}
    there = {f"usr/lib/modules/{version}/{name}": content for name, content in modules.items()}
    gone = dict.fromkeys(f"{MODULES}/{name}" for name in (*modules, "initramfs.img"))
    return {**gone, **there, f"usr/lib/modules/{version}/initramfs.img": cpio.write(SYSTEMD)}


NO_KERNEL: Changes = dict.fromkeys(f"{MODULES}/{name}" for name in ("vmlinuz", "initramfs.img"))
FLAWED: dict[str, Changes] = {
    "kernel": NO_KERNEL,
    "duplicate-kernel": {f"boot/vmlinuz-{KVER}": b"another"},
    "kernel-modules": {"boot/vmlinuz-6.1.0-old": kernel(), "boot/initrd.img-6.1.0-old": cpio.write(SYSTEMD)},
    "kernel-config": {f"{MODULES}/config": CONFIG.replace(b"CONFIG_FS_VERITY=y", b"# CONFIG_FS_VERITY is not set")},
    "known-bad-kernel": kernel_of("7.0.3-arch1-2"),
    "initramfs": {f"{MODULES}/initramfs.img": None},
    "glue": {f"{MODULES}/initramfs.img": initramfs(unit=BOOTC)},
    "bootc-kargs": {"usr/lib/bootc/kargs.d/10-x.toml": b"kargs = 1\n"},
    "console": {"etc/kernel/cmdline": b"rw\n"},
    "systemd-boot": {f"{EFI}/systemd-bootx64.efi": None},
    "systemd-stub": {f"{EFI}/linuxx64.efi.stub": OLD},
    "boot-counting": {"usr/lib/systemd/systemd-bless-boot": None},
    "growth": {"usr/sbin/sfdisk": None},
    "uki": {UKI: uki(f"composefs=?{'ab' * 32}")},
    "signature": {UKI: uki(PROMISE)},
}
SAID = {
    "kernel": "the image has no kernel: neither",
    "duplicate-kernel": f"two kernels are called {KVER}; /{MODULES}/vmlinuz is taken: /{MODULES}/vmlinuz, /boot",
    "kernel-modules": f"the kernel 6.1.0-old has no modules in the image: those there are of {KVER}",
    "kernel-config": f"the kernel {KVER} is built without CONFIG_FS_VERITY",
    "known-bad-kernel": "Linux 7.0.3-arch1-2 says of verified files that they have no fs-verity digest",
    "initramfs": f"the kernel {KVER} has no initramfs in the image",
    "glue": "bootc-root-setup.service is passed over without a composefs argument",
    "bootc-kargs": "/usr/lib/bootc/kargs.d/10-x.toml is not a table with a list `kargs`",
    "console": "no kernel argument names a console",
    "systemd-boot": "the image has no systemd-boot: /usr/lib/systemd/boot/efi/systemd-bootx64.efi is missing",
    "systemd-stub": "linuxx64.efi.stub has the systemd-stub 254: addons",
    "boot-counting": "the image has no systemd-bless-boot",
    "growth": "the root file system will not grow to the disk on first boot: the image has no sfdisk",
    "uki": f"has the mark `?`: /{UKI}",
    "signature": "EFI/Linux/image.efi promises an image and is not signed",
}  # fmt: skip


@pytest.mark.parametrize("check", FLAWED)
def test_it_is_found(check: str) -> None:
    """P.12, O.9, D.10: what is missing is named."""
    texts = found(FLAWED[check], check)
    assert texts, "nothing found"
    assert SAID[check] in texts[0]


def test_a_good_image_has_none_of_it() -> None:
    assert found({}) == []


def test_two_kernels_are_one_too_many_until_one_is_named() -> None:
    changes = {f"usr/lib/modules/6.1.0/{name}": kernel() for name in ("vmlinuz", "initramfs.img")}
    assert found(changes, "kernel") == [f"the image has 2 kernels: 6.1.0, {KVER}"]
    assert found(changes, "kernel", boot=BootOptions(kernel=KVER)) == []


def test_the_same_kernel_twice_is_one() -> None:
    assert found({f"boot/vmlinuz-{KVER}": kernel()}, "duplicate-kernel") == []


@pytest.mark.parametrize(
    ("version", "bad"),
    [
        ("6.12.62", False), ("6.12.63-longterm", True), ("6.12.117+deb13-amd64", False), ("6.17.12-300.fc43", False),
        ("6.18.3-200.fc43.x86_64", True), ("6.18.5-200.fc43", False), ("6.19.14", False), ("7.0.1", True),
        ("7.0", True), ("7.1.0", False), ("custom", False),
    ],
)  # fmt: skip
def test_kernels_that_are_known_to_fail(version: str, bad: bool) -> None:
    """As users reported them: coreos/fedora-coreos-tracker#2087, ublue-os/ucore#339, bootc-dev/bootc#2174."""
    assert bool(found(kernel_of(version), "known-bad-kernel")) == bad
    assert found(kernel_of(version), "known-bad-kernel", verity=VerityOptions()) == []


def test_a_kernel_without_configuration_is_named() -> None:
    assert "no configuration of the kernel" in found({f"{MODULES}/config": None}, "kernel-config")[0]


def test_dm_verity_asks_for_other_features() -> None:
    (text,) = found({}, "kernel-config", verity=VerityOptions())
    assert "without CONFIG_EXT4_FS" in text or "without CONFIG_DM_VERITY" in text


def test_an_initramfs_that_cannot_be_read_is_found() -> None:
    assert "an initramfs with neither" in found({f"{MODULES}/initramfs.img": b"nonsense"}, "initramfs")[0]
    assert found({f"{MODULES}/initramfs.img": b"nonsense"}, "initramfs", boot=BootOptions(initrd="builtin")) == []


def test_what_is_added_to_the_initramfs_has_to_be_there() -> None:
    plain = [member for member in SYSTEMD if member.path != b"usr/bin/umount"]
    assert found({f"{MODULES}/initramfs.img": cpio.write(plain)}, "initramfs") == [
        "neither the initramfs nor the image has the program umount"
    ]


def test_what_the_initramfs_can_do_without_is_a_warning() -> None:
    plain = [member for member in SYSTEMD if member.path != b"usr/bin/chroot"]
    linted = run_lints(subject({f"{MODULES}/initramfs.img": cpio.write(plain)}), "image")
    assert [(one.lint.name, one.severity, one.text) for one in linted.findings] == [
        ("initramfs", "warning", "the root file system will not grow: neither the initramfs nor the image has chroot")
    ]


def test_glue_that_fails_open_is_found_unless_a_drop_in_closes_it() -> None:
    """C.36, O.4"""
    texts = found({f"{MODULES}/initramfs.img": initramfs(unit=BOOTC)}, "glue")
    assert len(texts) == 2
    assert "the machine does not restart" in texts[1]
    assert found({f"{MODULES}/initramfs.img": initramfs(unit=BOOTC, drop_in=CLOSED)}, "glue") == []
    assert len(found({UKI: uki(PROMISE, *())}, "glue")) == 1
    inside = uki(PROMISE, b"ID=x\n", KVER, cpio.file(UNIT.encode(), BOOTC.encode()))
    assert len(found({UKI: inside, **NO_KERNEL}, "glue")) == 2


def test_glue_without_a_unit_is_named() -> None:
    there = cpio.write([*SYSTEMD, cpio.file(b"usr/bin/composefs-setup-root", b"")])
    (text,) = found({f"{MODULES}/initramfs.img": there}, "glue")
    assert text.startswith("no unit that is known starts the glue of composefs-setup-root")
    ours = cpio.write([*SYSTEMD, cpio.file(b"usr/lib/oci2boot/setup-root", b"")])
    assert found({f"{MODULES}/initramfs.img": ours}, "glue") == []


def test_an_architecture_without_a_boot_loader_is_found_once() -> None:
    """P.9"""
    strange = replace(subject({}), architecture="sparc64")
    texts = [finding.sentence for finding in run_lints(strange, "image").findings]
    assert texts == ["the image is for sparc64: no EFI boot loader for it is known"]
    assert found({}, "architecture") == []


def test_each_thing_is_said_once() -> None:
    """What the initramfs is not given, and what the kernel lacks, is said by the check of it, not by all that look."""
    assert found(FLAWED["growth"]) == found(FLAWED["growth"], "growth")
    assert found(FLAWED["kernel-config"]) == found(FLAWED["kernel-config"], "kernel-config")
    assert found({UKI: b"MZ nonsense"}) == found({UKI: b"MZ nonsense"}, "uki")


def test_what_is_only_unknown_is_a_warning() -> None:
    linted = run_lints(subject({f"{MODULES}/config": None}), "image")
    assert [(one.lint.name, one.severity) for one in linted.findings] == [("kernel-config", "warning")]
    linted = run_lints(subject(FLAWED["kernel-config"]), "image")
    assert [(one.lint.name, one.severity) for one in linted.findings] == [("kernel-config", "error")]


def test_a_sealed_image_needs_no_kernel_besides_its_uki(signer: Pair) -> None:
    changes = {**NO_KERNEL, UKI: signer.sbsign(uki(PROMISE))}
    assert [found(changes, check) for check in ("kernel", "initramfs", "systemd-stub", "console", "uki")] == [[]] * 5
    assert found(changes, "known-bad-kernel") == []


@pytest.mark.parametrize("options", [BootOptions(kargs=("console=tty0",)), BootOptions(console="serial")])
def test_a_console_that_is_asked_for_counts(options: BootOptions) -> None:
    """K0.13"""
    assert found(FLAWED["console"], "console", boot=options) == []


def test_the_budget_is_that_of_all_that_is_loaded() -> None:
    """C.19"""
    large = {f"{MODULES}/initramfs.img": bytes(WARN_SIZES[1])}
    (text,) = found(large, "size-budget")
    assert "is more than the 32 MiB that some takes" in text
    assert "initramfs 32.0" in text
    assert found(large, "size-budget", boot=BootOptions(initrd="builtin")) == []
    limited = BootOptions(size_limit=1000)
    assert "1000 are allowed" in found({}, "size-budget", boot=limited)[0]


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


def test_a_signed_uki_wants_a_signed_loader(signer: Pair) -> None:
    """C.35, P.7: signatures by sbsign; systemd-boot as Debian signs it."""
    changes: Changes = {UKI: signer.sbsign(uki(PROMISE))}
    (text,) = found(changes, "signature")
    assert "would be started by EFI/systemd/systemd-bootx64.efi, which is not signed" in text
    signed = package("systemd-boot-efi-amd64-signed") / f"{EFI}/systemd-bootx64.efi.signed"
    assert found({**changes, f"{EFI}/systemd-bootx64.efi.signed": signed.read_bytes()}, "signature") == []
    assert found(changes, "signature", boot=BootOptions(loader="none")) == []


def test_a_changed_uki_has_a_signature_that_does_not_hold(signer: Pair) -> None:
    data = bytearray(signer.sbsign(uki(PROMISE)))
    data[data.index(b"console=ttyS0")] ^= 1
    texts = found({UKI: bytes(data)}, "signature")
    assert texts[0].startswith("the signature of EFI/Linux/image.efi does not hold: the executable was changed")


def test_a_uki_of_an_old_stub_and_an_addon_that_decides_are_found() -> None:
    old = uki(PROMISE).replace(b"LoaderInfo: systemd-stub 257", b"LoaderInfo: systemd-stub 254")
    (text,) = found({UKI: old}, "uki")
    assert text.startswith(f"/{UKI} has the systemd-stub 254")
    (text,) = found({UKI: uki(PROMISE), f"{UKI}.extra.d/x.addon.efi": addon("init=/bin/sh")}, "uki")
    assert text.startswith("addon x.addon.efi: it appends init=/bin/sh")
    (text,) = found({UKI: b"MZ nonsense"}, "uki")
    assert text.startswith(f"/{UKI}: ")


def test_a_stub_without_sbat_cannot_be_revoked() -> None:
    (text,) = found({f"{EFI}/linuxx64.efi.stub": stub().replace(b".sbat\0", b".nots\0")}, "systemd-stub")
    assert "no SBAT section" in text


def test_shim_is_looked_for_where_it_is_asked_for() -> None:
    (text,) = found({}, "systemd-boot", boot=BootOptions(loader="shim"))
    assert text == "the image has no shim for x64"
    assert found({f"{EFI}/systemd-bootx64.efi": None}, "systemd-boot", boot=BootOptions(loader="direct")) == []


def test_links_that_lead_nowhere_are_no_programs() -> None:
    assert found({"usr/sbin/sfdisk": Path("sfdisk")}, "growth")
