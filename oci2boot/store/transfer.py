"""An image from one repository to another: objects first, their names next, references last."""

from collections.abc import Callable, Sequence

from oci2boot.digest import External
from oci2boot.errors import StoreError
from oci2boot.store.content import Content
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository

Progress = Callable[[int], None]


def missing_objects(content: Content, target: Repository) -> list[External]:
    return [External(digest, size) for digest, size in content.objects.items() if not target.has_object(digest)]


def transfer(
    content: Content, objects: Sequence[External], source: Repository, target: Repository, progress: Progress
) -> None:
    """Make `content` of `source` part of `target`, which lacks `objects`; each is measured on the way."""
    if source.algorithm != target.algorithm:
        raise StoreError(f"{target.path} is a {target.algorithm} repository, the image is for {source.algorithm}")
    with ObjectBatch(target) as batch:
        for item in objects:
            batch.take(item.digest, source.object_path(item.digest))
            progress(item.size)
        batch.links.update(
            {path: digest for path, digest in content.links.items() if not (target.path / path).is_symlink()}
        )


def set_refs(target: Repository, refs: dict[str, str]) -> None:
    """Let references keep what is named already."""
    for path, name in refs.items():
        area, _, ref = path.split("/", 2)
        if target.ref_target(path) != name:
            target.set_ref(area, ref, name)


def drop_refs(target: Repository, refs: Sequence[str]) -> None:
    for path in refs:
        (target.path / path).unlink(missing_ok=True)
