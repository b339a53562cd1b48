from pathlib import Path

import pytest

from oci2boot.boot import discover
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, FormatError, ImageError, KernelError, LimitError
from oci2boot.formats.cmdline import ComposefsArg
from tests.boot.trees import read_inline, tree_of

PROMISE = ComposefsArg(VerityDigest.parse("ab" * 32))


def found(files: dict[str, bytes | Path]) -> list[tuple[str, bytes, bytes]]:
    kernels = discover.find_kernels(tree_of(files))
    return [(kernel.version, kernel.image_path, kernel.initramfs_path) for kernel in kernels]


# D.18: where the distributions' own packages put them.
def test_debian_keeps_kernels_in_boot() -> None:
    files: dict[str, bytes | Path] = {
        "boot/vmlinuz-6.12.107+deb13-amd64": b"k",
        "boot/initrd.img-6.12.107+deb13-amd64": b"i",
        "boot/config-6.12.107+deb13-amd64": b"c",
        "usr/lib/modules/6.12.107+deb13-amd64/modules.dep": b"",
        "vmlinuz": Path("boot/vmlinuz-6.12.107+deb13-amd64"),
    }
    version = "6.12.107+deb13-amd64"
    assert found(files) == [(version, f"boot/vmlinuz-{version}".encode(), f"boot/initrd.img-{version}".encode())]


def test_fedora_keeps_kernels_beside_their_modules() -> None:
    base = "usr/lib/modules/6.17.1-300.fc43.x86_64"
    files: dict[str, bytes | Path] = {f"{base}/vmlinuz": b"k", f"{base}/initramfs.img": b"i"}
    files |= {"boot/vmlinuz-6.17.1-300.fc43.x86_64": b"k", "boot/vmlinuz-0-rescue-1234": b"k"}
    assert found(files) == [("6.17.1-300.fc43.x86_64", f"{base}/vmlinuz".encode(), f"{base}/initramfs.img".encode())]


def test_arch_names_files_after_the_package() -> None:
    base = "usr/lib/modules/6.17.7-arch1-1"
    files: dict[str, bytes | Path] = {f"{base}/vmlinuz": b"k", f"{base}/pkgbase": b"linux\n"}
    files |= {"boot/vmlinuz-linux": b"k", "boot/initramfs-linux.img": b"i", "boot/initramfs-linux-fallback.img": b"i"}
    assert found(files) == [("6.17.7-arch1-1", f"{base}/vmlinuz".encode(), b"boot/initramfs-linux.img")]


def test_links_are_followed_within_the_image() -> None:
    files: dict[str, bytes | Path] = {
        "usr/lib/modules/6.1/vmlinuz": Path("/boot/vmlinuz-6.1"),
        "boot/vmlinuz-6.1": b"k",
        "boot/initramfs-6.1.img": Path("../boot/./real"),
        "boot/real": b"i",
    }
    (kernel,) = discover.find_kernels(tree_of(files))
    assert (kernel.image.content, kernel.initramfs and kernel.initramfs.content) == (b"k", b"i")


def test_links_out_of_the_image_and_in_circles_lead_nowhere() -> None:
    files: dict[str, bytes | Path] = {
        "boot/vmlinuz-6.1": Path("../../../../etc/passwd"),
        "boot/vmlinuz-6.2": Path("vmlinuz-6.2"),
    }
    assert found(files) == []


def test_no_kernel_is_an_error_that_says_where_was_looked() -> None:
    with pytest.raises(ImageError, match="no kernel"):
        discover.choose_kernel(discover.find_kernels(tree_of({"usr/bin/sh": b""})))


def two_kernels() -> list[discover.Kernel]:
    files: dict[str, bytes | Path] = {
        f"boot/{name}-{version}": b"x" for name in ("vmlinuz", "initrd") for version in ("6.1", "6.12")
    }
    return discover.find_kernels(tree_of(files))


def test_several_kernels_need_a_choice_and_the_error_lists_them() -> None:
    """K1.5"""
    with pytest.raises(KernelError, match=r"2 kernels: 6\.1, 6\.12"):
        discover.choose_kernel(two_kernels())
    assert discover.choose_kernel(two_kernels(), "6.12").version == "6.12"
    with pytest.raises(ImageError, match=r"no kernel 6\.2") as caught:
        discover.choose_kernel(two_kernels(), "6.2")
    assert "6.1, 6.12" in (caught.value.hint or "")


def test_a_kernel_without_initramfs_is_an_error() -> None:
    with pytest.raises(ImageError, match="no initramfs"):
        discover.choose_kernel(discover.find_kernels(tree_of({"boot/vmlinuz-6.1": b"k"})))


def test_ukis_are_found_where_images_keep_them() -> None:
    """P.5"""
    files: dict[str, bytes | Path] = {
        "boot/EFI/Linux/b.efi": b"",
        "boot/EFI/Linux/bootc/bootc_composefs-1.efi": b"",
        "boot/EFI/Linux/b.efi.extra.d/a.addon.efi": b"",
        "boot/EFI/Linux/note.txt": b"",
        "usr/lib/modules/6.1/6.1.efi": b"",
    }
    assert discover.find_ukis(tree_of(files)) == [
        b"boot/EFI/Linux/b.efi",
        b"boot/EFI/Linux/bootc/bootc_composefs-1.efi",
        b"usr/lib/modules/6.1/6.1.efi",
    ]


# The examples of bootc's manual page on kargs.d, and its Containerfiles.
KARGS: dict[str, bytes | Path] = {
    "usr/lib/bootc/kargs.d/10-a.toml": b'kargs = ["mitigations=auto,nosmt"]\n',
    "usr/lib/bootc/kargs.d/20-b.toml": b'kargs = ["console=ttyS0"]\nmatch-architectures = ["x86_64", "aarch64"]\n',
    "usr/lib/bootc/kargs.d/30-c.toml": b'kargs = ["arm"]\nmatch-architectures = ["aarch64"]\n',
    "usr/lib/bootc/kargs.d/readme": b"no TOML",
    "etc/kernel/cmdline": b"rw rhgb\nquiet\n",
    "usr/lib/kernel/cmdline": b"not this one",
}


def test_the_images_arguments_keep_their_order() -> None:
    """D.9, P.6"""
    words = discover.read_arguments(tree_of(KARGS), read_inline, "x86_64")
    assert words == ["mitigations=auto,nosmt", "console=ttyS0", "rw", "rhgb", "quiet"]
    line = discover.build_cmdline(words, ["systemd.log_level=debug"], [PROMISE])
    assert line == " ".join([*words, "systemd.log_level=debug", f"composefs={'ab' * 32}"])


@pytest.mark.parametrize(
    "content",
    [
        b"kargs = 1",
        b'kargs = ["a", 1]',
        b"\xff",
        b"kargs = [",
        b'match-architectures = ["x86_64"]',
        b"kargs = ['\xc3\xa4']",
    ],
)
def test_arguments_files_that_are_not_as_bootc_has_them_are_refused(content: bytes) -> None:
    with pytest.raises(FormatError):
        discover.read_arguments(tree_of({"usr/lib/bootc/kargs.d/a.toml": content}), read_inline, "x86_64")


@pytest.mark.parametrize(
    "word",
    [str(PROMISE), f"composefs={'cd' * 32}", "composefs=", "Composefs=1", f"composefs.digest=v1-sha256-12:{'ab' * 32}"],
)
@pytest.mark.parametrize("origin", ["image", "user"])
def test_nobody_else_may_give_the_composefs_argument(word: str, origin: str) -> None:
    """C.31: two of them would make the machine refuse to boot."""
    with pytest.raises(ImageError, match="composefs"):
        discover.build_cmdline([word] if origin == "image" else [], [word] if origin == "user" else [], [PROMISE])


def test_a_line_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(LimitError):
        discover.build_cmdline(["a" * 2000], [], [PROMISE])


def test_a_huge_arguments_file_is_refused() -> None:
    with pytest.raises(Error):
        discover.read_arguments(tree_of({"etc/kernel/cmdline": b"a" * 70000}), read_inline, "x86_64")


def test_the_console_is_that_of_the_machine() -> None:
    """K0.13, K1.16; serial-console.rst: the last `console=` is /dev/console."""
    assert discover.console_arguments("serial", "x86_64") == ["console=tty0", "console=ttyS0,115200"]
    assert discover.console_arguments("serial", "aarch64") == ["console=tty0", "console=ttyAMA0,115200"]
    assert discover.console_arguments("hvc0", "x86_64") == ["console=hvc0"]
    assert discover.console_arguments("ttyS1,115200n8", "x86_64") == ["console=ttyS1,115200n8"]
    for bad in ("", "ttyS0 init=/bin/sh", "tty=1", '"tty0"', "ttyS0,"):
        with pytest.raises(FormatError, match="not a console"):
            discover.console_arguments(bad, "x86_64")
