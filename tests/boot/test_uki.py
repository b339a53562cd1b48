import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from oci2boot.boot import uki
from oci2boot.boot.uki import (
    UkiParts,
    _append,
    build_addon,
    build_uki,
    check_machines,
    check_ukify,
    merge_sbat,
    ukify_argv,
    verify_uki,
)
from oci2boot.errors import DigestError, FormatError, ImageError, LimitError, ToolError
from oci2boot.formats import pe
from tests.boot.debian import package
from tests.flips import flipped
from tests.witness import program

EFI = "usr/lib/systemd/boot/efi"
COMMAND_LINE = f'rw quiet  a="b  c" composefs={"ab" * 32}'


@dataclass(frozen=True)
class Inputs:
    stub: Path
    kernel: Path
    initrds: tuple[Path, ...]
    cmdline: Path
    os_release: Path
    microcode: Path

    def parts(self) -> UkiParts:
        return UkiParts(
            kernel=self.kernel.read_bytes(),
            initrds=tuple(path.read_bytes() for path in self.initrds),
            cmdline=self.cmdline.read_text(),
            os_release=self.os_release.read_bytes(),
            uname="6.12.107+deb13-amd64",
            microcode=self.microcode.read_bytes() if self.microcode.name else b"",
        )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """systemd-boot stands for a kernel: an EFI program with revocation entries of its own."""
    path = tmp_path_factory.mktemp("uki")
    systemd_boot = package("systemd-boot-efi") / EFI
    (path / "initrd").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 4095 + b"end")
    (path / "extra").write_bytes(b"070701 and so on")
    (path / "cmdline").write_text(COMMAND_LINE)
    (path / "os-release").write_bytes(b"ID=debian\nIMAGE_VERSION=7\n")
    (path / "ucode").write_bytes(b"microcode")
    return Inputs(
        systemd_boot / "linuxx64.efi.stub",
        systemd_boot / "systemd-bootx64.efi",
        (path / "initrd", path / "extra"),
        path / "cmdline",
        path / "os-release",
        path / "ucode",
    )


def ukify(given: Inputs, output: Path) -> bytes:
    """Debian 13's systemd-ukify 257.13, run by this Python (it needs pefile)."""
    script = package("systemd-ukify") / "usr/bin/ukify"
    argv = ukify_argv(
        script, given.stub, given.kernel, given.initrds, given.cmdline, given.os_release, "6.12.107+deb13-amd64",
        output, given.microcode if given.microcode.name else None,
    )  # fmt: skip
    done = subprocess.run([sys.executable, *argv], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output.read_bytes()


def cases(given: Inputs) -> Iterator[Inputs]:
    yield given
    yield replace(given, initrds=given.initrds[:1], microcode=Path())


@pytest.mark.parametrize("number", [0, 1])
def test_the_bytes_are_those_of_ukify(number: int, inputs: Inputs, tmp_path: Path) -> None:
    """C.24, K1.4"""
    given = list(cases(inputs))[number]
    built = build_uki(given.stub.read_bytes(), given.parts())
    assert built == ukify(given, tmp_path / "uki.efi")
    verify_uki(built, given.stub.read_bytes(), given.parts())


def test_an_addon_has_the_bytes_of_ukifys(tmp_path: Path) -> None:
    stub = package("systemd-boot-efi") / EFI / "addonx64.efi.stub"
    line = f"composefs={'ab' * 32}"
    (tmp_path / "cmdline").write_text(line)
    script = package("systemd-ukify") / "usr/bin/ukify"
    words = ["build", "--cmdline", f"@{tmp_path}/cmdline", "--uname", "6.12", "--output", f"{tmp_path}/addon.efi"]
    subprocess.run([sys.executable, script, "--stub", stub, *words], check=True, capture_output=True)
    assert build_addon(stub.read_bytes(), line, "6.12") == (tmp_path / "addon.efi").read_bytes()


def test_other_readers_see_the_same_sections(inputs: Inputs, tmp_path: Path) -> None:
    parts = inputs.parts()
    path = tmp_path / "uki.efi"
    path.write_bytes(build_uki(inputs.stub.read_bytes(), parts))
    for name, pieces in parts.sections():
        section = tmp_path / "section"
        subprocess.run(
            [program("objcopy"), "-O", "binary", "--dump-section", f"{name.decode()}={section}", path, tmp_path / "x"],
            check=True,
        )
        assert section.read_bytes() == b"".join(pieces)
    said = subprocess.run([program("sbverify"), "--list", path], check=False, capture_output=True, text=True)
    assert "No signature table present" in said.stdout + said.stderr


def test_revocation_entries_of_stub_kernel_and_uki_are_joined(inputs: Inputs) -> None:
    merged = merge_sbat(inputs.stub.read_bytes(), inputs.kernel.read_bytes()).decode()
    assert merged.startswith("sbat,1,")
    assert [line.partition(",")[0] for line in merged.splitlines()[1:-1]] == [
        "systemd-stub", "systemd-stub.debian", "systemd-boot", "systemd-boot.debian", "uki",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", [".text", ".rodata", ".osrel", ".cmdline", ".uname", ".linux", ".initrd", ".ucode", ".sbat"]
)
def test_a_byte_changed_in_any_section_is_found(name: str, inputs: Inputs) -> None:
    stub, parts = inputs.stub.read_bytes(), inputs.parts()
    built = build_uki(stub, parts)
    (section,) = pe.parse(built).sections_named(name.encode())
    for at in (section.pointer_to_raw_data, section.pointer_to_raw_data + section.virtual_size - 2):
        with pytest.raises(DigestError):
            verify_uki(flipped(built, at), stub, parts)


def test_a_uki_of_other_parts_is_found(inputs: Inputs) -> None:
    """ukify 257.8 with a stub of systemd 258 puts the command line into .osrel, and exits 0."""
    stub, parts = inputs.stub.read_bytes(), inputs.parts()
    for other in (
        replace(parts, cmdline=parts.cmdline + " "),
        replace(parts, cmdline="rw"),
        replace(parts, initrds=parts.initrds[:1]),
        replace(parts, microcode=b""),
        replace(parts, uname="6.12"),
    ):
        with pytest.raises(DigestError):
            verify_uki(build_uki(stub, other), stub, parts)


def test_a_section_that_nobody_put_there_is_found(inputs: Inputs) -> None:
    """systemd-stub reads sections by their names: one more may be a device tree, or other profiles."""
    stub, parts = inputs.stub.read_bytes(), inputs.parts()
    built = _append(build_uki(stub, parts), [(b".dtb", (b"a device tree",))], None, keeps_nx=True)
    with pytest.raises(DigestError, match=r"nobody put there: \.dtb"):
        verify_uki(built, stub, parts)


def test_a_uki_for_another_machine_is_found(inputs: Inputs) -> None:
    stub, parts = inputs.stub.read_bytes(), inputs.parts()
    built = build_uki(stub, parts)
    headers = pe.parse(built)
    changed, at = replace(headers.file_header, machine=0xAA64).pack(), headers.file_header_offset
    with pytest.raises(DigestError, match="for aarch64, its stub for x86_64"):
        verify_uki(built[:at] + changed + built[at + len(changed) :], stub, parts)


def test_an_entry_point_outside_the_stub_is_found(inputs: Inputs) -> None:
    stub, parts = inputs.stub.read_bytes(), inputs.parts()
    built = build_uki(stub, parts)
    headers = pe.parse(built)
    changed = replace(headers.optional_header, address_of_entry_point=0x2000).pack()
    at = headers.optional_header_offset
    with pytest.raises(DigestError, match="start"):
        verify_uki(built[:at] + changed + built[at + len(changed) :], stub, parts)


def test_stub_kernel_and_image_must_be_for_one_machine(inputs: Inputs) -> None:
    stub, kernel = inputs.stub.read_bytes(), inputs.kernel.read_bytes()
    check_machines(stub, kernel, "x86_64")
    with pytest.raises(ImageError, match="for aarch64, its systemd-stub for x86_64"):
        check_machines(stub, kernel, "aarch64")
    with pytest.raises(ImageError, match="not an EFI executable"):
        check_machines(stub, b"\x1f\x8b compressed", "x86_64")
    ia32 = pe.parse(kernel)
    other = replace(ia32.file_header, machine=0xAA64).pack()
    at = ia32.file_header_offset
    with pytest.raises(ImageError, match="its kernel for aarch64"):
        check_machines(stub, kernel[:at] + other + kernel[at + len(other) :], "x86_64")


def test_a_stub_that_is_no_program_is_refused(inputs: Inputs) -> None:
    with pytest.raises(FormatError):
        build_uki(b"no stub", inputs.parts())


def test_an_old_stub_takes_ukify(inputs: Inputs) -> None:
    """systemd 252's has a symbol table."""
    stub = inputs.stub.read_bytes()
    headers = pe.parse(stub)
    old = replace(headers.file_header, pointer_to_symbol_table=len(stub)).pack()
    at = headers.file_header_offset
    with pytest.raises(ImageError, match="only ukify"):
        build_uki(stub[:at] + old + stub[at + len(old) :], inputs.parts())


# Printed by the ukify of Ubuntu 24.04, Debian 13, Fedora 41. The bad ones below are too old, or systemd's NEWS says so.
@pytest.mark.parametrize(
    "version", ["ukify 255 (255.4-1ubuntu8)", "ukify 257 (257.13-1~deb13u1)", "ukify 256 (256.7-1.fc41)", "ukify 262.1"]
)
def test_good_versions_of_ukify_pass(version: str, inputs: Inputs) -> None:
    assert uki.stub_version(inputs.stub.read_bytes()) == 257
    check_ukify(version, inputs.stub.read_bytes())


@pytest.mark.parametrize("version", ["ukify 254 (254.5-1)", "ukify 257 (257.1-2)", "ukify 257 (257)", "python: no", ""])
def test_bad_versions_of_ukify_are_refused(version: str, inputs: Inputs) -> None:
    with pytest.raises(ToolError):
        check_ukify(version, inputs.stub.read_bytes())


def test_a_newer_stub_wants_a_newer_ukify(inputs: Inputs) -> None:
    stub = inputs.stub.read_bytes()
    newer = re.sub(rb"systemd-stub 257", b"systemd-stub 258", stub)
    assert uki.stub_version(newer) == 258
    check_ukify("ukify 257 (257.9-1)", newer)
    with pytest.raises(ToolError, match=r"257\.9"):
        check_ukify("ukify 257 (257.8-1)", newer)


def test_no_uki_is_built_that_would_not_be_read_again(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(build_uki(inputs.stub.read_bytes(), inputs.parts()))
    monkeypatch.setattr(uki, "MAX_UKI", size // 2)
    with pytest.raises(LimitError, match=f"a UKI of more than {size // 2} bytes"):
        build_uki(inputs.stub.read_bytes(), inputs.parts())
