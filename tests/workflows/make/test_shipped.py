"""The rootfs image that comes along in place of one made here: taken for its digest alone, and only if it is this tree.

That its digest is the right one `fsverity` and `cfsctl` say in `test_seal_contents`.
"""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from oci2boot.digest import Hash
from oci2boot.errors import DigestError, StaleError, StoreError
from oci2boot.formats.fsverity import measure as measure_bytes
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.composefs import Rootfs
from oci2boot.rootfs.reader import referenced_objects
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.tree.prepare import Xattrs
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.digest import measure
from oci2boot.workflows.progress import Event, Report, Told, Warned, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, DigestRequest, ErofsVersion, TreeOptions
from tests.oci.layouts import Layout
from tests.tarballs import END, directory, file, gnu_long, hard_link, header, pax, symlink
from tests.workflows.make.seals import sealed_to
from tests.workflows.sealable import add_image, base, tar, uki

USUAL = TreeOptions()
TAKEN = "took the rootfs image that came along"
TOOL = b"usr/bin/tool"
LARGE = b"tool" * 99
TREE: tuple[bytes, ...] = (
    directory(b"usr/bin/"),
    pax((b"SCHILY.xattr.user.note", b"kept")), file(TOOL, LARGE, mode=0o4755),
    hard_link(b"usr/bin/link", TOOL),
    symlink(b"usr/bin/name", b"tool"),
    file(b"usr/bin/small", b"inline"),
    pax((b"mtime", b"1000.25")), file(b"usr/bin/other", b"other" * 99),
    header(b"usr/lib/null", b"3", major=1, minor=3),
    header(b"usr/lib/fifo", b"6"),
    file(b"usr/bin/one", b"twin" * 99),
    file(b"usr/bin/two", b"twin" * 99),
)  # fmt: skip
"""All that a tree has: hard links, devices, attributes, parts of a second."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images on one base, with rootfs images that are really those of some tree."""

    layout: Layout
    folder: Path

    def add(self, *tars: bytes) -> str:
        tag = f"t{len(self.layout.manifests)}"
        add_image(self.layout, [*base(), b"".join(TREE) + END, *tars], tag)
        return f"oci:{self.layout.path}:{tag}"

    def rootfs(self, source: str, rules: TreeOptions = USUAL, algorithm: Hash = "sha256") -> Rootfs:
        request = DigestRequest(source=Reference.parse(source), tree=rules, hash=algorithm)
        return measure(request, silent).rootfs

    def convert(self, source: str, report: Report = silent, algorithm: Hash = "sha256") -> Bootable:
        return convert(self.request(source, algorithm), report)

    def request(self, source: str, algorithm: Hash = "sha256") -> ConvertRequest:
        return ConvertRequest(
            source=Reference.parse(source),
            repo=self.folder / algorithm,
            name="x",
            hash=algorithm,
            boot=BootOptions(ukify="builtin"),
        )


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(Layout(tmp_path / "layout"), tmp_path)


def uki_of(rootfs: Rootfs) -> dict[str, bytes | Path]:
    return {"boot/EFI/Linux/os.efi": uki(f"rw composefs={rootfs.digest.hex}")}


def sealed_by(uki_is_of: Rootfs, brought: Rootfs, image: bytes | None = None) -> bytes:
    """Return a layer with a UKI and a rootfs image; names of sha512 are longer than a tar header has room for."""
    name = f"boot/composefs/{brought.digest.hex}.erofs".encode()
    content = brought.image if image is None else image
    added = directory(b"boot/composefs/") + gnu_long(b"L", name) + file(name, content)
    return tar(uki_of(uki_is_of)).removesuffix(END) + added + END


def texts(told: Sequence[Event], kind: type[Told] | type[Warned]) -> list[str]:
    return [event.text for event in told if isinstance(event, kind)]


@pytest.fixture
def unable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be able to make a rootfs image, or to label one."""

    def fail(*_: object) -> None:
        raise AssertionError("made here")

    for name in ("convert.build_rootfs", "convert.canonical_tree", "rules.build_rootfs", "rules.label"):
        monkeypatch.setattr(f"oci2boot.workflows.make.{name}", fail)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("xattrs", ["allowlist-only", "keep-user"])
def test_the_image_of_these_layers_is_taken(
    version: ErofsVersion, xattrs: Xattrs, algorithm: Hash, images: Images, request: pytest.FixtureRequest
) -> None:
    """C.9: by every rule and format, and at an upgrade; the same record comes of one that is made here."""
    rules = TreeOptions(erofs_version=version, xattrs=xattrs)
    rootfs = images.rootfs(images.add(), rules, algorithm)
    without = images.convert(images.add(tar(uki_of(rootfs))), algorithm=algorithm)
    source = images.add(sealed_by(rootfs, rootfs))
    request.getfixturevalue("unable")
    told: list[Event] = []
    taken = images.convert(source, told.append, algorithm)
    assert f"{TAKEN}: it has the promised digest {rootfs.digest}" in texts(told, Told)
    assert taken.root == without.root
    assert (taken.flow, taken.esp, taken.xattrs) == ("sealed", without.esp, without.xattrs)
    with Repository.open(images.folder / algorithm) as repository:
        assert repository.read_object(rootfs.digest) == rootfs.image
        assert all(map(repository.has_object, referenced_objects(rootfs.image)))
    again = request_again(taken, images.folder / algorithm, images.folder, BootOptions())
    assert convert(again, silent).root == taken.root


def test_an_image_with_labels_is_taken(images: Images, request: pytest.FixtureRequest) -> None:
    """C.9, C.30: labels split a hard link, and nobody computes them again; a policy that changed makes it stale."""
    contexts = b"/usr/bin/link -- system_u:object_r:link_t:s0\n/.* system_u:object_r:any_t:s0\n"
    place = "etc/selinux/some/contexts/files/file_contexts"
    policy = tar({"etc/selinux/config": b"SELINUXTYPE=some\n", place: contexts})
    rootfs = images.rootfs(images.add(policy))
    assert b"link_t" in rootfs.image
    other = tar({place: contexts.replace(b"link_t", b"else_t")})
    above = images.add(policy, sealed_by(rootfs, rootfs), other)
    with pytest.raises(StaleError, match=f"/{place}: "):
        images.convert(above)
    source = images.add(policy, sealed_by(rootfs, rootfs))
    request.getfixturevalue("unable")
    told: list[Event] = []
    assert images.convert(source, told.append).root.image == rootfs.digest
    assert any(TAKEN in text for text in texts(told, Told))


CHANGES = {
    "content": (file(TOOL, b"evil" * 99, mode=0o4755), r"/usr/bin/tool: "),
    "mode": (file(TOOL, LARGE, mode=0o755), r"/usr/bin/tool: mode: promised 4755, found 0755"),
    "owner": (file(b"usr/bin/small", b"inline", uid=7), r"/usr/bin/small: uid: promised 0, found 7"),
    "time": (file(b"usr/bin/small", b"inline", mtime=7), r"/usr/bin/small: mtime: promised 1000, found 7"),
    "fraction": (file(b"usr/bin/other", b"other" * 99), r"/usr/bin/other: mtime nanoseconds: "),
    "target": (symlink(b"usr/bin/name", b"small"), r"/usr/bin/name: target: promised tool, found small"),
    "device": (header(b"usr/lib/null", b"3", major=1, minor=5), r"/usr/lib/null: device: "),
    "type": (file(b"usr/lib/fifo"), r"/usr/lib/fifo: type: promised FIFO, found file"),
    "capability": (
        pax((b"SCHILY.xattr.security.capability", b"all")) + file(b"usr/bin/small", b"inline"),
        r"/usr/bin/small: xattr security.capability: ",
    ),
    "added": (file(b"usr/bin/new", b"new"), r"/usr/bin/new: path: promised absent, found file"),
    "removed": (file(b"usr/bin/.wh.small"), r"/usr/bin/small: path: promised file, found absent"),
    "joined": (
        file(b"usr/bin/one", b"twin" * 99) + hard_link(b"usr/bin/two", b"usr/bin/one"),
        r"/usr/bin/two: hard link of: promised absent, found /usr/bin/one",
    ),
    "link": (
        pax((b"SCHILY.xattr.user.note", b"kept")) + file(b"usr/bin/link", LARGE, mode=0o4755),
        r"/usr/bin/tool: hard link of: promised /usr/bin/link, found absent",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_of_an_older_tree_is_stale_with_its_uki(change: str, images: Images) -> None:
    """C.4, C.9: its digest is the promised one, and all its files are there; what changed above it is named."""
    layer, words = CHANGES[change]
    rootfs = images.rootfs(images.add())
    sealed = sealed_by(rootfs, rootfs)
    with pytest.raises(StaleError, match=words) as caught:
        images.convert(images.add(sealed, directory(b"usr/bin/") + layer + END))
    assert f"os.efi promises {rootfs.digest}; this image is " in caught.value.message


def test_an_image_that_no_uki_promises_is_left_alone_and_named(images: Images) -> None:
    """C.9: it is that of the version before; what the UKI promises is made here."""
    old = images.rootfs(images.add())
    change = tar({"usr/bin/new": b"new"})
    new = images.rootfs(images.add(change))
    told: list[Event] = []
    bootable = images.convert(images.add(change, sealed_by(new, old)), told.append)
    assert (bootable.flow, bootable.root.image) == ("sealed", new.digest)
    assert f"the rootfs image that came along is of another tree, {old.digest.hex}: one was made here" in texts(
        told, Warned
    )
    assert not any(TAKEN in text for text in texts(told, Told))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_uki_that_promises_two_digests_brings_the_image_of_one(
    algorithm: Hash, layout: Layout, repo: Path, images: Images
) -> None:
    """C.9: a store of the other hash makes its own, and nothing that came along is called another's."""
    out = f"oci:{images.folder}/out:x"
    boot = BootOptions(ukify="builtin", both_hashes=True)
    sealed = sealed_to(repo, f"oci:{layout.path}:base", out, boot, ship_erofs=True)
    told: list[Event] = []
    bootable = images.convert(out, told.append, algorithm)
    assert bootable.flow == "sealed"
    assert (str(bootable.root.image) == sealed.rootfs) == (algorithm == "sha256")
    assert any(TAKEN in text for text in texts(told, Told)) == (algorithm == "sha256")
    assert not any("came along" in text for text in texts(told, Warned))


@pytest.mark.parametrize("damage", ["byte", "short", "empty", "old"])
def test_an_image_without_the_digest_in_its_name_is_refused(damage: str, images: Images) -> None:
    """C.9: nothing is made in its place, though the layers would give it."""
    rootfs = images.rootfs(images.add())
    image = rootfs.image
    wrong = {
        "byte": image[:-1] + bytes([image[-1] ^ 1]),
        "short": image[:-4096],
        "empty": b"",
        "old": images.rootfs(images.add(tar({"usr/bin/new": b"new"}))).image,
    }[damage]
    name = f"/boot/composefs/{rootfs.digest.hex}.erofs"
    found = f"{name} was tampered with: promised is {rootfs.digest}, it measures {measure_bytes(wrong)}"
    with pytest.raises(DigestError, match=f"^{found}$"):
        images.convert(images.add(sealed_by(rootfs, rootfs, wrong)))


def test_what_is_promised_and_is_no_rootfs_image_is_stale(images: Images) -> None:
    """Whoever signed this promised nonsense: it is an error, and no traceback."""
    for nonsense in (b"", b"nonsense", bytes(8192), images.rootfs(images.add()).image[:4096]):
        digest = measure_bytes(nonsense)
        rootfs = Rootfs(nonsense, digest, 1, 0)
        with pytest.raises(StaleError, match=f"promises {digest}; this image is"):
            images.convert(images.add(sealed_by(rootfs, rootfs)))


def test_an_image_with_a_file_that_no_layer_brings_is_stale(images: Images) -> None:
    """C.9: unsigned, a UKI and its rootfs image may agree with each other and not with the layers."""
    other = images.rootfs(images.add(directory(b"usr/bin/") + file(TOOL, b"else" * 99, mode=0o4755) + END))
    with pytest.raises(StaleError, match="/usr/bin/tool: "):
        images.convert(images.add(sealed_by(other, other)))


def test_an_object_that_the_store_lost_is_missed(images: Images) -> None:
    """C.9, C.11: the layer was unpacked before, and is not again."""
    rootfs = images.rootfs(images.add())
    source = images.add(sealed_by(rootfs, rootfs))
    images.convert(source)
    lost = measure_bytes(LARGE)
    with Repository.open(images.folder / "sha256") as repository:
        path = repository.object_path(lost)
        assert stat.S_ISREG(path.stat().st_mode)
        path.unlink()
    with pytest.raises(StoreError, match=rf"/usr/bin/(tool|link) from object {lost}, which the store lacks"):
        images.convert(source)
