"""The store on disk. `cfsctl` 0.9 is the witness: what it makes we open, what we make it opens."""

import json
import subprocess
from pathlib import Path

import pytest

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import DigestError, Error, LimitError, StoreError
from oci2boot.formats import fsverity
from oci2boot.store.content import Content
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import STAGING, Repository
from oci2boot.store.transfer import transfer
from tests.witness import program


def add_object(repository: Repository, data: bytes) -> VerityDigest:
    with ObjectBatch(repository) as batch:
        return batch.add(data)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_meta_json_is_what_cfsctl_writes(algorithm: Hash, tmp_path: Path) -> None:
    """D.2"""
    theirs = tmp_path / "theirs"
    subprocess.run(
        [program("cfsctl"), "init", "--algorithm", f"fsverity-{algorithm}-12", "--insecure", theirs], check=True
    )
    with Repository.ensure(tmp_path / "ours", algorithm):
        pass
    assert (tmp_path / "ours/meta.json").read_bytes() == (theirs / "meta.json").read_bytes()
    with Repository.open(theirs) as opened:
        assert opened.algorithm == algorithm


def test_an_object_is_named_as_the_slides_say(tmp_path: Path) -> None:
    """D.2: objects/00/2183fb91…; the digest is what fsverity-utils computes."""
    content = tmp_path / "content"
    content.write_bytes(b"x" * 100_000)
    said = subprocess.run(
        [program("fsverity"), "digest", "--compact", content], check=True, capture_output=True, text=True
    )
    digits = said.stdout.strip()
    with Repository.ensure(tmp_path / "repo") as repository:
        assert str(add_object(repository, content.read_bytes())) == digits
        path = tmp_path / "repo/objects" / digits[:2] / digits[2:]
        assert path.read_bytes() == content.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
        assert repository.read_object(VerityDigest.parse(digits)) == content.read_bytes()


def test_the_store_is_closed_to_others(tmp_path: Path) -> None:
    """Objects hold an image's /etc/shadow."""
    with Repository.ensure(tmp_path / "repo"):
        assert (tmp_path / "repo").stat().st_mode & 0o777 == 0o700


def test_pieces_and_whole_give_the_same_object(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    with Repository.ensure(tmp_path / "repo") as repository, ObjectBatch(repository) as batch:
        whole = batch.add(content)
        assert batch.add_pieces(content[at : at + 999] for at in range(0, len(content), 999)) == whole
        assert batch.written == len(content)


def test_what_fails_names_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(repository: Repository) -> None:
        with ObjectBatch(repository) as batch:
            batch.add(b"content" * 100)
            raise ZeroDivisionError

    with Repository.ensure(tmp_path / "repo") as repository:
        with pytest.raises(ZeroDivisionError):
            fail(repository)
        assert not repository.has_object(fsverity.measure(b"content" * 100))
        assert list((tmp_path / "repo").glob(f"{STAGING}*")) == []


def test_a_damaged_object_is_not_read(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        digest = add_object(repository, b"content" * 100)
        repository.object_path(digest).write_bytes(b"Content" * 100)
        with pytest.raises(DigestError, match="damaged"):
            repository.read_object(digest)
        repository.object_path(digest).unlink()
        with pytest.raises(StoreError, match="missing"):
            repository.read_object(digest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "newer"),
        ({"features": {"incompatible": ["frobnication"]}}, "frobnication"),
        ({"algorithm": "fsverity-md5-12"}, "md5"),
        ({"algorithm": ["x"]}, "unknown algorithm"),
        ({"features": 7}, "damaged"),
    ],
)
def test_a_store_that_is_not_understood_is_refused(change: dict[str, object], says: str, tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo"):
        pass
    meta = tmp_path / "repo/meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | change))
    with pytest.raises(StoreError, match=says):
        Repository.open(tmp_path / "repo")


def test_a_store_with_an_unknown_feature_that_forbids_writing_is_read_only(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo"):
        pass
    meta = tmp_path / "repo/meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"features": {"read-only-compatible": ["new"]}}))
    with Repository.open(tmp_path / "repo") as repository, pytest.raises(StoreError, match="newer"):
        add_object(repository, b"x")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"version": 1}', b"[" * 100_000])
def test_a_broken_meta_json_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Repository.open(tmp_path)


def test_a_folder_with_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(StoreError, match="not empty"):
        Repository.ensure(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_another_hash_is_refused(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo", "sha256"):
        pass
    with pytest.raises(StoreError, match="sha256 repository, not sha512"):
        Repository.ensure(tmp_path / "repo", "sha512")


@pytest.mark.parametrize("target", ["/etc/passwd", "../objects/../../../etc/passwd", "../objects/aa/bb", "x"])
def test_a_link_that_leads_elsewhere_is_refused(target: str, tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        (tmp_path / "repo/streams/bad").symlink_to(target)
        with pytest.raises(Error, match="no object"):
            repository.stream_digest("bad")


def test_empty_content_is_an_object_too(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        assert add_object(repository, b"") == fsverity.measure(b"")


@pytest.mark.parametrize("target", ["../elsewhere/ab/" + "cd" * 31, "../objects/ab/" + "cd" * 63])
def test_a_link_to_an_object_of_another_store_is_refused(target: str, tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        (tmp_path / "repo/images/bad").symlink_to(target)
        with pytest.raises(StoreError, match="no object of this repository"):
            repository.image_digest("bad")


def test_a_file_is_no_name(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        (tmp_path / "repo/images/bad").write_text("../objects/ab/" + "cd" * 31)
        with pytest.raises(StoreError, match="not a symbolic link"):
            repository.image_digest("bad")
        (tmp_path / "repo/images/refs").mkdir(exist_ok=True)
        (tmp_path / "repo/images/refs/bad").write_text("x")
        with pytest.raises(StoreError, match="not a symbolic link"):
            list(repository.refs("images"))


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        digest = add_object(repository, b"content" * 100)
        assert repository.read_object(digest, 700) == b"content" * 100
        with pytest.raises(LimitError, match="at most 699"):
            repository.read_object(digest, 699)


def test_a_damaged_object_of_another_store_is_not_taken(tmp_path: Path) -> None:
    """C.8: what comes from elsewhere is measured."""
    (tmp_path / "theirs").write_bytes(b"Content" * 100)
    digest = fsverity.measure(b"content" * 100)
    with Repository.ensure(tmp_path / "repo") as repository:
        with pytest.raises(DigestError, match="is damaged: it measures"), ObjectBatch(repository) as batch:
            batch.take(digest, tmp_path / "theirs")
        assert not repository.has_object(digest)


def test_an_image_is_not_copied_to_a_store_of_another_hash(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "one") as one, Repository.ensure(tmp_path / "two", "sha512") as two:
        add_object(one, b"x")
        with pytest.raises(StoreError, match="sha512 repository, the image is for sha256"):
            transfer(Content({}, {}, {}), [], one, two, lambda _: None)
