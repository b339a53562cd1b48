"""`convert --mode verity`: veritysetup, dump.erofs, openssl and cfsctl say what it made."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from oci2boot.cli.hints import hint_of
from oci2boot.errors import Error, FormatError, ImageError
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.rootfs.mkfs import Compression
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.fsck import check
from oci2boot.store.reach import plan_collection
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.system.run import Argv
from oci2boot.tree.model import Directory, find
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Event, Warned
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions, TreeOptions
from oci2boot.workflows.verify.inspect import measured_manifest
from tests.boot import debian
from tests.store.stored import cfsctl
from tests.witness import program
from tests.workflows.verity_images import (
    BUILTIN_OPTIONS,
    HASH_ONLY,
    ZSTD,
    check_signature,
    convert_verity,
    make_image,
    object_of,
    verity_layers,
    words_of,
)

pytestmark = pytest.mark.usefixtures("erofs_utils")


@pytest.mark.parametrize(
    "options",
    [
        HASH_ONLY,
        replace(HASH_ONLY, compression=ZSTD),
        replace(HASH_ONLY, hash="sha512", salt=b"\1\2"),
        replace(HASH_ONLY, compression=Compression.parse("lz4hc,level=9"), salt=b""),
    ],
    ids=str,
)
def test_the_root_hash_on_the_command_line_is_veritysetups(
    source: Reference, options: VerityOptions, tmp_path: Path
) -> None:
    """K0.1, K0.2, K0.5, K1.6, K1.17"""
    bootable = convert_verity(source, tmp_path, options)
    verity = bootable.root
    assert isinstance(verity, DmVerityRoot)
    image, tree = object_of(tmp_path, bootable, "image"), object_of(tmp_path, bootable, "tree")
    (word,) = (word for word in words_of(tmp_path, bootable) if word.startswith("roothash="))
    root_hash = word.removeprefix("roothash=")
    assert str(verity.root_hash) == root_hash
    subprocess.run([program("veritysetup"), "verify", image, tree, root_hash], check=True)
    assert (verity.data_size, verity.hash_size) == (image.stat().st_size, tree.stat().st_size)
    dumped = subprocess.check_output([program("veritysetup"), "dump", tree], text=True)
    assert re.search(rf"Data blocks: +\t{verity.data_blocks}\n", dumped)
    assert re.search(rf"Hash algorithm: +\t{options.hash}\n", dumped)
    assert re.search(rf"Salt: +\t{verity.salt.hex() or '-'}\n", dumped)
    subprocess.run([debian.erofs_utils("fsck.erofs"), "--extract", image], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["zstd", "lz4"])
def test_dump_erofs_finds_files_compressed_as_asked(source: Reference, name: str, tmp_path: Path) -> None:
    """K0.2, K0.15"""
    bootable = convert_verity(source, tmp_path, replace(HASH_ONLY, compression=Compression.parse(name)))
    assert isinstance(bootable.root, DmVerityRoot)
    assert bootable.root.data_size < bootable.root.raw_size
    image = object_of(tmp_path, bootable, "image")
    dump = debian.erofs_utils("dump.erofs")
    found = subprocess.check_output([dump, "--path=/usr/share/text", image], text=True)
    ratio = re.search(r"Compression ratio: ([0-9.]+)%", found)
    assert ratio
    assert float(ratio[1]) < 50
    assert re.search(r"Layout: (1|3) ", found), found  # EROFS_INODE_COMPRESSED_FULL, _COMPACT
    algorithms = subprocess.check_output([dump, image], text=True)
    assert "compr_cfgs" in algorithms or name == "lz4"


def test_what_is_on_the_disk_is_the_tree_of_the_record(source: Reference, tmp_path: Path) -> None:
    """C.1, K0.1: fsck.erofs unpacks the same files that the composefs image lists."""
    bootable = convert_verity(source, tmp_path / "repo", replace(HASH_ONLY, compression=ZSTD))
    out = tmp_path / "out"
    argv: Argv = [debian.erofs_utils("fsck.erofs"), f"--extract={out}", object_of(tmp_path / "repo", bootable, "image")]
    subprocess.run(argv, check=True, capture_output=True)
    assert (out / "etc/motd").read_bytes() == b"welcome\n"
    with Repository.open(tmp_path / "repo") as repository:
        tree = read_rootfs(repository.read_object(bootable.root.tree))
    assert {path.name.encode() for path in out.iterdir()} == tree.entries.keys()
    for path in ("/etc/motd", "/usr/bin/tool", "/usr/share"):
        inode = find(tree, path.encode())
        assert inode
        shown = subprocess.check_output([debian.erofs_utils("dump.erofs"), f"--path={path}", argv[2]], text=True)
        moment = datetime.fromtimestamp(inode.meta.mtime, UTC)
        assert f"Timestamp: {moment:%Y-%m-%d %H:%M:%S}.{inode.meta.mtime_nsec:09}" in shown


def test_mount_points_are_there_and_told(source: Reference, tmp_path: Path) -> None:
    """K0.3: nobody can make a directory on the machine."""
    told: list[Event] = []
    options = replace(HASH_ONLY, overlays=(Overlay("/etc"), Overlay("/srv/data", "tmpfs")))
    bootable = convert_verity(source, tmp_path, options, report=told.append)
    with Repository.open(tmp_path) as repository:
        tree = read_rootfs(repository.read_object(bootable.root.tree))
    for path in (b"/efi", b"/boot", b"/sysroot", b"/proc", b"/sys", b"/dev", b"/run", b"/tmp", b"/var", b"/srv/data"):
        found = find(tree, path)
        assert isinstance(found, Directory), path
        assert not found.entries
    (text,) = (event.text for event in told if isinstance(event, Warned) and "/efi" in event.text)
    assert "/srv, /srv/data, /dev, /efi, /proc, /sys, /tmp" in text


def test_an_overlay_where_a_symlink_is_is_refused(tmp_path: Path) -> None:
    """K0.16"""
    layers = verity_layers(home=Path("var/home"))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="/home of the image is a symlink to var/home"):
        convert_verity(
            make_image(tmp_path, layers), tmp_path / "repo", replace(HASH_ONLY, overlays=(Overlay("/home"),))
        )


def test_it_is_the_same_each_time(source: Reference, tmp_path: Path) -> None:
    """B.4, K0.10"""
    options = replace(HASH_ONLY, compression=ZSTD)
    assert convert_verity(source, tmp_path / "a", options) == convert_verity(source, tmp_path / "b", options)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_store_stays_one_that_cfsctl_takes(
    source: Reference, signing: SigningOptions, algorithm: Any, tmp_path: Path
) -> None:
    """B.9, D.2"""
    bootable = convert(
        ConvertRequest(
            source=source,
            repo=tmp_path,
            name="demo",
            hash=algorithm,
            boot=BUILTIN_OPTIONS,
            verity=VerityOptions(),
            root_signing=signing,
        ),
        print,
    )
    with Repository.open(tmp_path) as repository:
        assert check(repository).problems == ()
        assert plan_collection(repository).objects == ()
        assert plan_collection(repository).links == ()
    assert bootable.root.image.algorithm == algorithm
    assert "status: ok" in cfsctl(tmp_path, "fsck")
    assert "Objects: 0 removed" in cfsctl(tmp_path, "gc", "--dry-run")


# ---- the command line


# ---- signatures


# ---- what is refused before any work


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        ({"verity": VerityOptions()}, "there is no key", "--no-verity-signature"),
        (
            {"verity": VerityOptions(), "root_signing": SigningOptions(certificate=Path("c"), key="pkcs11:token")},
            "in a token",
            "--verity-key",
        ),
        (
            {"verity": VerityOptions(), "root_signing": SigningOptions(certificate=Path("c"))},
            "one way",
            "--sign-command",
        ),
        (
            {"verity": VerityOptions(), "root_signing": SigningOptions(certificate=Path("/nowhere/c.pem"), key="k")},
            "cannot read /nowhere/c.pem",
            "",
        ),
        ({"boot": BootOptions(flow="sealed")}, "--flow sealed", ""),
        ({"boot": BootOptions(flow="vendor")}, "--flow vendor", ""),
        ({"boot": BootOptions(flow="type1")}, "--flow type1", ""),
        ({"boot": BootOptions(karg_style="digest")}, "--karg-style", ""),
        ({"boot": BootOptions(allow_missing_verity=True)}, "--allow-missing-verity", "--no-verity"),
        ({"boot": BootOptions(both_hashes=True)}, "--both-hashes", "--verity-hash"),
        ({"boot": BootOptions(kargs=("root=/dev/sda1",))}, "contradicts", ""),
        ({"boot": BootOptions(kargs=("a b",))}, "read back", "quotes"),
        ({"tree": TreeOptions(bootable=False)}, "--plain", ""),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    change: dict[str, Any], said: str, hint: str, tmp_path: Path
) -> None:
    """K0.16, K1.2, K1.21"""
    asked = {"verity": HASH_ONLY, "boot": BUILTIN_OPTIONS, **change}
    request = ConvertRequest(source=Reference.parse("oci:/nowhere:v"), repo=tmp_path / "repo", **asked)
    with pytest.raises(Error, match=said) as caught:
        convert(request, print)
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "repo").exists()


# ---- again


def test_the_next_version_is_converted_alike(source: Reference, signing: SigningOptions, tmp_path: Path) -> None:
    """B.9: an upgrade knows the options, and the key is named anew"""
    options = VerityOptions(
        compression=ZSTD,
        verity=True,
        hash="sha512",
        salt=b"\7",
        blocks=None,
        place="embedded",
        signature=True,
        form="systemd",
        options=("panic-on-corruption",),
        overlays=(Overlay("/var", "tmpfs"),),
    )
    boot = replace(BUILTIN_OPTIONS, signing=signing)
    bootable = convert_verity(source, tmp_path / "repo", options, boot=boot)
    again = request_again(bootable, tmp_path / "repo", tmp_path, replace(boot, kargs=("not of the record",)))
    assert (again.verity, again.root_signing) == (options, signing)
    assert convert(again, print) == bootable
    with pytest.raises(Error, match="signed"):
        request_again(bootable, tmp_path / "repo", tmp_path, BUILTIN_OPTIONS)
    kept = {**bootable.options, "verity": {**bootable.options["verity"], "form": "other"}}
    with pytest.raises(FormatError):
        request_again(replace(bootable, options=kept), tmp_path / "repo", tmp_path, boot)


# ---- Debian


@pytest.mark.demo
def test_debian_becomes_a_disk_that_veritysetup_verifies(
    demo_image: Callable[[str], Path], signing: SigningOptions, tmp_path: Path
) -> None:
    """K0.1, K0.2, K0.15, K1.1, K1.3, K1.4: kernel, initramfs, UKI and root in one run, without ukify"""
    options = VerityOptions(compression=Compression.parse("zstd,level=3"))
    source = Reference.parse(f"oci:{demo_image('dracut')}:latest")
    boot = replace(BUILTIN_OPTIONS, signing=signing, initrd="builtin")
    bootable = convert_verity(source, tmp_path / "repo", options, boot=boot)
    verity = bootable.root
    assert isinstance(verity, DmVerityRoot)
    assert verity.ratio < 0.6
    image, tree = (object_of(tmp_path / "repo", bootable, what) for what in ("image", "tree"))
    subprocess.run([program("veritysetup"), "verify", image, tree, str(verity.root_hash)], check=True)
    subprocess.run([debian.erofs_utils("fsck.erofs"), image], check=True, capture_output=True)
    check_signature(tmp_path / "repo", bootable, signing, tmp_path)
    found = measured_manifest("demo", tmp_path / "repo").paths
    capable = subprocess.check_output(
        [debian.erofs_utils("dump.erofs"), "--path=/usr/bin/demo-setuid", image], text=True
    )
    assert re.search(r"Uid: 65534 +Gid: 12345 +Access: 0755/", capable), capable
    assert (found["/usr/bin/demo-setuid"]["mode"], found["/usr/bin/demo-setuid"]["uid"]) == ("6755", 65534)
    # This image's own initramfs has no systemd-veritysetup.
    with pytest.raises(ImageError, match="has no systemd-veritysetup") as caught:
        convert_verity(source, tmp_path / "repo", options, boot=replace(boot, initrd="image"))
    assert "--initrd builtin" in (hint_of(caught.value) or "")
