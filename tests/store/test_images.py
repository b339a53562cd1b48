"""Images in the store, and what keeps them. `cfsctl` 0.9 is the witness."""

import json
import subprocess
from pathlib import Path

import pytest

from oci2boot.digest import Hash, OciDigest
from oci2boot.errors import DigestError, Error, StoreError
from oci2boot.formats.splitstream import SplitStream
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.content import image_content
from oci2boot.store.fsck import check
from oci2boot.store.images import Bootable, check_name, find_image, remove_image, save, saved_images
from oci2boot.store.layers import has_layer, layer_tar, read_layer, stage_layer, stream_name
from oci2boot.store.reach import collect, plan_collection
from oci2boot.store.repository import STAGING, Repository
from oci2boot.store.roots import DmVerityRoot
from tests.flips import flip
from tests.store.stored import cfsctl, everything, layer, store_image, system
from tests.tarballs import entries, file
from tests.witness import VECTORS, program


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_cfsctl_takes_our_store_for_its_own(algorithm: Hash, tmp_path: Path) -> None:
    """D.2, D.22, C.10, C.13: fsck, images, inspect, compute-id and gc."""
    with Repository.ensure(tmp_path, algorithm) as repository:
        stored = store_image(repository, "demo/os:1", system())
    assert "status: ok" in cfsctl(tmp_path, "fsck")
    assert "oci images: 1/1 ok" in cfsctl(tmp_path, "oci", "fsck")
    assert "demo/os:1" in cfsctl(tmp_path, "oci", "images")
    inspected = json.loads(cfsctl(tmp_path, "oci", "inspect", "demo/os:1"))
    assert inspected["composefs_boot_erofs"] == str(stored.rootfs.digest)
    assert cfsctl(tmp_path, "oci", "compute-id", "--bootable", "demo/os:1").strip() == str(stored.rootfs.digest)
    assert "Objects: 0 removed" in cfsctl(tmp_path, "gc", "--dry-run")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_cfsctl_takes_an_image_for_dm_verity_for_its_own(algorithm: Hash, tmp_path: Path) -> None:
    """B.9: the objects of its partitions are kept, and no image of theirs."""
    with Repository.ensure(tmp_path, algorithm) as repository:
        stored = store_image(repository, "demo/os:1", system(), VerityOptions(signature=False))
        bootable = find_image(repository, "demo/os:1")
        assert bootable == stored.bootable
        assert check(repository).problems == ()
        assert plan_collection(repository).objects == ()
        content = image_content(repository, "demo/os:1")
    assert bootable.mode == "verity"
    with pytest.raises(StoreError, match="for a partition under dm-verity"):
        _ = bootable.composefs
    assert isinstance(bootable.root, DmVerityRoot)
    assert bootable.root.hash_object
    assert {bootable.root.image, bootable.root.hash_object, bootable.root.tree} <= content.objects.keys()
    assert {bootable.root.image.hex, bootable.root.tree.hex} & {
        path.name for path in (tmp_path / "images").iterdir()
    } == {bootable.root.tree.hex}
    assert "status: ok" in cfsctl(tmp_path, "fsck")
    assert "oci images: 1/1 ok" in cfsctl(tmp_path, "oci", "fsck")
    assert "Objects: 0 removed" in cfsctl(tmp_path, "gc", "--dry-run")
    with Repository.open(tmp_path) as repository:
        remove_image(repository, "demo/os:1")
        assert bootable.root.image in collect(repository).objects
    assert everything(tmp_path) == {"meta.json"}


def test_a_record_of_before_there_were_modes_is_read(tmp_path: Path) -> None:
    """B.9"""
    with Repository.ensure(tmp_path) as repository:
        bootable = store_image(repository, "one", system()).bootable
    record = {key: value for key, value in bootable.to_json().items() if key not in ("mode", "verity")}
    assert Bootable.from_json(record) == bootable
    assert bootable.mode == "composefs"


@pytest.mark.parametrize(
    "damage",
    [
        {"root_hash": None},
        {"hash_object": None},
        {"data_size": 5},
        {"data_size": -4096},
        {"data_blocks": 1 << 40},
        {"data_blocks": 0},
        {"data_blocks": "1"},
        {"algorithm": "sha512"},
        {"salt": "00" * 257},
        {"salt": "x"},
        {"place": "elsewhere"},
        {"overlays": ["/usr"]},
        {"overlays": 1},
        {"compression": "zip"},
        {"tree": 7},
        {"more": 1},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(damage: dict[str, object], tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as repository:
        record = store_image(repository, "one", system(), VerityOptions(signature=False)).bootable.to_json()
    assert Bootable.from_json(record).to_json() == record
    with pytest.raises(Error):
        Bootable.from_json({**record, "verity": {**record["verity"], **damage}})
    with pytest.raises(Error):
        Bootable.from_json({**record, "mode": "composefs"})


def test_a_store_that_cfsctl_filled_is_ours(tmp_path: Path) -> None:
    layout = VECTORS / "oci/boot-sysroot"
    repo = tmp_path / "repo"
    subprocess.run([program("cfsctl"), "init", "--algorithm", "fsverity-sha256-12", "--insecure", repo], check=True)
    cfsctl(repo, "oci", "pull", f"oci:{layout}:v", "theirs")
    with Repository.open(repo) as repository:
        assert check(repository).problems == ()
        theirs = cfsctl(repo, "gc", "--dry-run")
        plan = plan_collection(repository)
        assert f"Objects: {len(plan.objects)} removed" in theirs
        store_image(repository, "ours", system())
    assert "status: ok" in cfsctl(repo, "fsck")
    assert {"theirs", "ours"} <= set(cfsctl(repo, "oci", "images").split())


def test_a_stored_layer_gives_its_entries_again(tmp_path: Path) -> None:
    """P.2, C.8: layers are unpacked to the store without an EROFS image."""
    with Repository.ensure(tmp_path) as repository:
        stored = store_image(repository, "one", system())
        for diff_id, tar in zip(stored.diff_ids, system(), strict=True):
            assert has_layer(repository, diff_id)
            assert list(read_layer(repository, diff_id)) == entries(tar)


def test_a_tar_that_fails_at_its_end_names_no_layer(tmp_path: Path) -> None:
    tar = layer(file(b"big", b"x" * 10_000))
    pieces = [tar[:5000], tar[5000:]]

    def read(_: int) -> bytes:
        if pieces:
            return pieces.pop(0)
        raise StoreError("the digest is another one")

    with Repository.ensure(tmp_path) as repository:
        before = everything(tmp_path)
        diff_id = store_image(repository, "other", system()).diff_ids[0]
        after = everything(tmp_path)
        with pytest.raises(StoreError, match="another"):
            stage_layer(repository, diff_id, read)
        assert everything(tmp_path) == after > before


def test_gc_keeps_what_is_named_and_frees_the_rest(tmp_path: Path) -> None:
    """C.12, C.34, D.21: the second image adds what it does not share, and removing it frees exactly that."""
    with Repository.ensure(tmp_path) as repository:
        store_image(repository, "one", system(b"one"))
        only_one = everything(tmp_path)
        store_image(repository, "two", system(b"two"))
        assert plan_collection(repository).objects == ()
        remove_image(repository, "two")
        plan = plan_collection(repository)
        assert f"Objects: {len(plan.objects)} removed" in cfsctl(tmp_path, "gc", "--dry-run")
        assert collect(repository) == plan
        assert everything(tmp_path) == only_one
        assert check(repository).problems == ()
    assert "status: ok" in cfsctl(tmp_path, "fsck")


def test_gc_removes_what_a_crash_left(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as repository:
        store_image(repository, "one", system())
        before = everything(tmp_path)
        (tmp_path / f"{STAGING}crash").mkdir()
        (tmp_path / f"{STAGING}crash/0").write_bytes(b"half")
        assert "status: ok" in cfsctl(tmp_path, "fsck")
        assert check(repository).problems == ()
        assert collect(repository).leftovers == (f"{STAGING}crash",)
        assert everything(tmp_path) == before


def test_gc_waits_for_nobody_and_disturbs_nobody(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as one, Repository.open(tmp_path) as two:
        store_image(one, "one", system())
        with pytest.raises(StoreError, match="in use"):
            collect(two)


def test_names_find_images_and_the_last_one_is_the_default(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as repository:
        with pytest.raises(StoreError, match="no converted image"):
            find_image(repository, None)
        one = store_image(repository, "a/one:1", system(b"one")).bootable
        two = store_image(repository, "two%2F", system(b"two")).bootable
        assert find_image(repository, None) == two
        assert find_image(repository, "a/one:1") == one
        assert list(saved_images(repository)) == [two, one]
        assert store_image(repository, "a/one:1", system(b"one")).bootable == one
        assert find_image(repository, None) == one
        with pytest.raises(StoreError, match="three"):
            find_image(repository, "three")


@pytest.mark.parametrize("name", ["", "@x", ".hidden", "../up", "a/../b", "new\nline", "x" * 300])
def test_a_name_that_would_not_be_one_is_refused(name: str) -> None:
    with pytest.raises(StoreError):
        check_name(name)


@pytest.mark.parametrize(
    "record", [b"", b"{}", b"[]", b'{"manifest": 1}', b"[" * 100_000, b'{"manifest": null, "x": 1}']
)
def test_a_broken_boot_record_is_one_sentence(record: bytes) -> None:
    with pytest.raises(Error, match="boot record"):
        Bootable.parse(record)


def test_fsck_names_every_kind_of_damage(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as repository:
        stored = store_image(repository, "one", system())
        assert check(repository).problems == ()
        own = next(entry for entry in read_layer(repository, stored.diff_ids[1]) if entry.path == b"usr/bin/own")
        assert not isinstance(own.content, bytes)
        victim = repository.object_path(own.content.digest)
        victim.chmod(0o644)
        flip(victim, -1)
        assert any(f"{own.content.digest} is damaged" in problem for problem in check(repository).problems)

        repository.object_path(own.content.digest).unlink()
        problems = check(repository).problems
        assert any(problem.startswith(f"images/{stored.rootfs.digest}") for problem in problems)
        assert any(problem.startswith(f"streams/{stream_name(stored.diff_ids[1])}") for problem in problems)

        (tmp_path / "images" / stored.rootfs.digest.hex).unlink()
        assert any("the reference oci2boot/one names" in problem for problem in check(repository).problems)


def test_fsck_sees_a_manifest_that_is_another(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as repository:
        one = store_image(repository, "one", system(b"one")).bootable
        two = store_image(repository, "two", system(b"two")).bootable
        digest = repository.stream_digest(f"oci-manifest-{two.manifest}")
        assert digest is not None
        assert SplitStream.unpack(repository.read_object(digest)).sole_object() != digest
        repository.link(f"streams/oci-manifest-{one.manifest}", digest)
        assert any("its content is" in problem for problem in check(repository).problems)


def test_a_rootfs_image_is_kept_under_no_other_digest(tmp_path: Path) -> None:
    """D.2"""
    with Repository.ensure(tmp_path) as repository:
        stored = store_image(repository, "one", system())
        before = everything(tmp_path)
        with pytest.raises(StoreError, match="not what its digest says"):
            save(repository, stored.bootable, stored.rootfs.image + bytes(4096), {}, None)
        assert everything(tmp_path) == before


def test_a_layer_that_became_another_is_not_given_out(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as repository:
        one, other = store_image(repository, "one", system()).diff_ids
        assert OciDigest.of(b"".join(layer_tar(repository, one))) == one
        theirs = repository.stream_digest(stream_name(other))
        assert theirs
        repository.link(f"streams/{stream_name(one)}", theirs)
        with pytest.raises(DigestError, match="with other bytes"):
            list(layer_tar(repository, one))


def test_a_stream_of_another_kind_is_no_layer(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path) as repository:
        stored = store_image(repository, "one", system())
        manifest = repository.stream_digest(f"oci-manifest-{stored.bootable.manifest}")
        assert manifest
        repository.link(f"streams/{stream_name(stored.diff_ids[0])}", manifest)
        with pytest.raises(StoreError, match="does not hold a layer"):
            list(read_layer(repository, stored.diff_ids[0]))


@pytest.mark.parametrize("area", ["images", "streams"])
def test_gc_frees_nothing_where_it_cannot_tell_what_is_needed(area: str, tmp_path: Path) -> None:
    """C.12"""
    with Repository.ensure(tmp_path) as repository:
        store_image(repository, "one", system())
        store_image(repository, "two", system(b"two"))
        remove_image(repository, "two")
        before = everything(tmp_path)
        repository.set_ref(area, "lost", "nothing")
        with pytest.raises(StoreError, match="that is gone"):
            collect(repository)
        (tmp_path / area / "refs/lost").unlink()
        (tmp_path / "objects/ab").mkdir(exist_ok=True)
        (tmp_path / "objects/ab/mine").touch()
        with pytest.raises(StoreError, match="mine is not an object"):
            collect(repository)
        (tmp_path / "objects/ab/mine").unlink()
        assert everything(tmp_path) == before
