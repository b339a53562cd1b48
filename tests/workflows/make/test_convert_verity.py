"""`convert --mode verity`: veritysetup, dump.erofs, openssl and cfsctl say what it made."""

import base64
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from oci2boot.cli.hints import hint_of
from oci2boot.digest import OciDigest
from oci2boot.errors import Error, FormatError, ImageError, SignatureError
from oci2boot.formats import cmdline, cpio, pe
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.rootfs.mkfs import Compression
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.fsck import check
from oci2boot.store.images import Bootable
from oci2boot.store.reach import plan_collection
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.system.run import Argv
from oci2boot.tree.model import Directory, find
from oci2boot.workflows.keys.signing import answer
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Event, Warned
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions, TreeOptions
from oci2boot.workflows.verify.inspect import measured_manifest
from tests.boot import debian
from tests.initramfs.scripts import needed_by
from tests.store.stored import cfsctl
from tests.witness import program
from tests.workflows.verity_images import (
    BUILTIN_OPTIONS,
    INITRAMFS,
    convert_verity,
    make_image,
    make_signing,
    verity_layers,
)

HASH_ONLY = VerityOptions(signature=False)
ZSTD = Compression.parse("zstd,level=12")


@pytest.fixture(autouse=True)
def erofs_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Debian 13's mkfs.erofs first on PATH."""
    monkeypatch.setenv("PATH", str(debian.erofs_utils("mkfs.erofs").parent), prepend=":")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> SigningOptions:
    return make_signing(tmp_path_factory.mktemp("keys"))


def object_of(repo: Path, bootable: Bootable, what: str) -> Path:
    assert isinstance(bootable.root, DmVerityRoot)
    digest = {
        "image": bootable.root.image,
        "tree": bootable.root.hash_object,
        "signature": bootable.root.signature_object,
    }[what]
    assert digest
    return repo / "objects" / digest.path


def words_of(repo: Path, bootable: Bootable) -> list[str]:
    """Return the command line that the UKI itself has."""
    uki = uki_of(repo, bootable)
    (section,) = pe.parse(uki).sections_named(b".cmdline")
    return cmdline.split(cmdline.read_section(pe.contents(uki, section)))


def uki_of(repo: Path, bootable: Bootable) -> bytes:
    (path,) = (path for path in bootable.esp if re.fullmatch(r"EFI/Linux/[^/]*\.efi", path))
    return (repo / "objects" / bootable.esp[path].path).read_bytes()


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


def test_the_images_arguments_stay_and_rw_does_not(source: Reference, tmp_path: Path) -> None:
    """K1.15, K1.16, K1.18; the image's /etc/kernel/cmdline is `rw quiet`."""
    kargs = ("rd.debug", 'demo="two words"', "systemd.verity_root_options=panic-on-corruption")
    boot = replace(BUILTIN_OPTIONS, kargs=kargs, console="serial")
    words = words_of(tmp_path, convert_verity(source, tmp_path, HASH_ONLY, boot=boot))
    assert words[0] == "ro"
    assert "rw" not in words
    assert [word for word in words if not word.startswith(("roothash", "ro", "console"))] == ["quiet", *kargs]
    assert "console=ttyS0,115200" in words
    assert not any(word.startswith("composefs") for word in words)


@pytest.mark.parametrize(
    ("karg", "said"),
    [
        (f"roothash={'f' * 64}", "is given, the image has"),
        ('"roothash=0"', "is given, the image has"),
        ("root=/dev/vda2", "contradicts"),
        (f"composefs={'0' * 64}", "contradicts"),
        ("rw", "cannot be written"),
        ("two words", "would not be read back"),
        ('open="quote', "would not be read back"),
        ("systemd.verity_root_data=/dev/vda", "is given, the image has"),
        ("systemd.verity_root_options=whatever", "not an option"),
    ],
)
def test_an_argument_that_contradicts_is_refused(source: Reference, karg: str, said: str, tmp_path: Path) -> None:
    """K1.6, K1.18"""
    with pytest.raises(Error, match=said):
        convert_verity(source, tmp_path / "repo", HASH_ONLY, boot=replace(BUILTIN_OPTIONS, kargs=(karg, "quiet")))


def test_both_partitions_can_be_named(source: Reference, tmp_path: Path) -> None:
    """K1.7, K1.8, K1.9"""
    options = replace(HASH_ONLY, place="embedded", form="systemd", options=("restart-on-corruption",))
    bootable = convert_verity(source, tmp_path, options)
    assert isinstance(bootable.root, DmVerityRoot)
    assert bootable.root.root_hash
    digits = str(bootable.root.root_hash)
    guid = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"
    assert words_of(tmp_path, bootable)[2:] == [
        f"roothash={digits}",
        f"systemd.verity_root_data=PARTUUID={guid}",
        f"systemd.verity_root_hash=PARTUUID={guid}",
        f"systemd.verity_root_options=hash-offset={bootable.root.data_size},restart-on-corruption",
    ]


def test_a_veritytab_goes_into_the_initramfs(source: Reference, tmp_path: Path) -> None:
    """K1.20"""
    bootable = convert_verity(source, tmp_path, replace(HASH_ONLY, form="veritytab"))
    uki = uki_of(tmp_path, bootable)
    (section,) = pe.parse(uki).sections_named(b".initrd")
    found = cpio.read(bytes(pe.contents(uki, section)), lambda path: path == b"etc/veritytab")
    assert b"usr/lib/systemd/systemd-veritysetup" in found
    content = found[b"etc/veritytab"].content
    assert content
    assert isinstance(bootable.root, DmVerityRoot)
    assert content.split()[3].decode() == str(bootable.root.root_hash)
    words = words_of(tmp_path, bootable)
    assert "root=/dev/mapper/root" in words
    assert not any(word.startswith("roothash") for word in words)


def test_without_verity_there_is_no_root_hash(source: Reference, tmp_path: Path) -> None:
    """K0.5"""
    options = VerityOptions(compression=ZSTD, verity=False, signature=False)
    bootable = convert_verity(source, tmp_path, options)
    assert bootable.mode == "verity"
    assert isinstance(bootable.root, DmVerityRoot)
    assert (bootable.root.root_hash, bootable.root.hash_object, bootable.root.signature_object) == (None,) * 3
    superblock = subprocess.check_output(
        [debian.erofs_utils("dump.erofs"), "-s", object_of(tmp_path, bootable, "image")], text=True
    )
    uuid = re.search(r"Filesystem UUID: +([0-9a-f-]{36})", superblock)
    assert uuid
    assert words_of(tmp_path, bootable) == ["ro", "quiet", f"root=UUID={uuid[1]}"]


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        (b"usr/lib/systemd/systemd-veritysetup", "no systemd-veritysetup"),
        (b"usr/lib/systemd/system-generators/systemd-veritysetup-generator", "no systemd-veritysetup-generator"),
    ],
)
def test_an_initramfs_that_cannot_is_refused(left_out: bytes, said: str, tmp_path: Path) -> None:
    """K0.8"""
    source = make_image(tmp_path, verity_layers([one for one in INITRAMFS if one.path != left_out]))
    with pytest.raises(ImageError, match=said) as caught:
        convert_verity(source, tmp_path / "repo", HASH_ONLY)
    assert "--initrd builtin" in (hint_of(caught.value) or "")


@pytest.mark.parametrize("overlays", [(Overlay("/etc"), Overlay("/var", "tmpfs")), ()])
def test_the_images_initramfs_gets_what_lays_the_overlays(
    source: Reference, overlays: tuple[Overlay, ...], tmp_path: Path
) -> None:
    """K0.3, K0.4: a unit that initrd-root-fs.target requires, so that nothing boots without them"""
    uki = uki_of(tmp_path, convert_verity(source, tmp_path, replace(HASH_ONLY, overlays=overlays)))
    (section,) = pe.parse(uki).sections_named(b".initrd")
    found = cpio.read(bytes(pe.contents(uki, section)), lambda path: b"overlays" in path)
    unit = b"usr/lib/systemd/system/oci2boot-setup-overlays.service"
    link = b"usr/lib/systemd/system/initrd-root-fs.target.requires/oci2boot-setup-overlays.service"
    assert (unit in found, link in found) == (bool(overlays), bool(overlays))
    listed = found[b"usr/lib/oci2boot/overlays"].content
    assert listed is not None
    assert listed.split() == [word.encode() for overlay in overlays for word in (overlay.path, overlay.kept)]
    if overlays:
        assert b"FailureAction=reboot-force" in (found[unit].content or b"")
        assert found[link].content == b"../oci2boot-setup-overlays.service"
        # The witness is of composefs: here setup-root only lends its functions.
        names = {name for name in needed_by("setup-overlays") if not name.startswith("witness-")}
        assert {f"usr/lib/oci2boot/{name}".encode() for name in names} <= set(found)
        assert "grow" in names


# ---- signatures


def credential(repo: Path, bootable: Bootable) -> Path:
    (path,) = (path for path in bootable.esp if path.endswith(".cred"))
    (uki,) = (path for path in bootable.esp if re.fullmatch(r"EFI/Linux/[^/]*\.efi", path))
    assert path == f"{uki}.extra.d/roothash.p7s.cred"
    return repo / "objects" / bootable.esp[path].path


def check_signature(repo: Path, bootable: Bootable, signing: SigningOptions, folder: Path) -> None:
    """See that openssl takes the signature for one of the root hash's digits."""
    assert isinstance(bootable.root, DmVerityRoot)
    digits = folder / "digits"
    digits.write_text(str(bootable.root.root_hash))
    argv: Argv = [
        program("openssl"), "smime", "-verify", "-binary", "-inform", "DER", "-in", credential(repo, bootable),
        "-content", digits, "-CAfile", signing.certificate, "-purpose", "any",
    ]  # fmt: skip
    assert subprocess.check_output(argv, stderr=subprocess.DEVNULL).decode() == str(bootable.root.root_hash)


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
    words = words_of(tmp_path / "repo", convert_verity(source, tmp_path / "repo", debugging))
    assert karg[0] in words


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
