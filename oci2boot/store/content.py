"""All that one image has in a repository: with it, a copy is as good as the original, layers and record included."""

from collections.abc import Mapping
from dataclasses import dataclass

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import StoreError
from oci2boot.store.images import REF, escaped
from oci2boot.store.reach import follow
from oci2boot.store.repository import Repository

DEPLOYED = "oci2boot-deploy"
"""Folder of the references that keep what is deployed on a machine, by digest of the rootfs image."""
OCI = "oci"


@dataclass(frozen=True, slots=True)
class Content:
    """A closed part of a repository: every link leads to an object of it, every reference to a link."""

    objects: Mapping[VerityDigest, int]
    """Bytes of each."""
    links: Mapping[str, VerityDigest]
    """`images/<hex>` and `streams/<name>`."""
    refs: Mapping[str, str]
    """`images/refs/…` and `streams/refs/…`, and the name beside refs/ that each leads to."""

    def externals(self) -> list[External]:
        return [External(digest, size) for digest, size in self.objects.items()]


def image_refs(repository: Repository, name: str) -> dict[str, str]:
    """Return the references that a converted image has, by path in the repository."""
    refs = {}
    for area, folder in (("streams", REF), ("images", REF), ("streams", OCI)):
        ref = f"{area}/refs/{folder}/{escaped(name)}"
        target = repository.ref_target(ref)
        if target is not None:
            refs[ref] = target
    return refs


def image_content(repository: Repository, name: str) -> Content:
    """Follow the references of a converted image to everything they keep."""
    refs = image_refs(repository, name)
    links: dict[str, VerityDigest] = {}
    roots: dict[str, list[VerityDigest]] = {"images": [], "streams": []}
    for ref, target in refs.items():
        area = ref.partition("/")[0]
        digest = repository.image_digest(target) if area == "images" else repository.stream_digest(target)
        if digest is None:
            raise StoreError(f"the reference {ref} names {target}, which is gone", hint="convert the image again")
        links[f"{area}/{target}"] = digest
        roots[area].append(digest)
    names = repository.names_of_streams()
    objects, streams = follow(repository, roots["images"], roots["streams"], names)
    links |= {f"streams/{names[digest]}": digest for digest in sorted(streams.difference(roots["streams"]), key=str)}
    return Content({digest: repository.object_size(digest) for digest in sorted(objects, key=str)}, links, refs)


def deployed_refs(content: Content, rootfs: VerityDigest) -> dict[str, str]:
    """Return the references that keep a deployment of this image, whatever becomes of the image's name."""
    return {
        f"{ref.partition('/')[0]}/refs/{DEPLOYED}/{rootfs}": target
        for ref, target in content.refs.items()
        if f"/refs/{REF}/" in ref
    }
