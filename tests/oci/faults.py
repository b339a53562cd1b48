"""A registry that misbehaves as it is told: half a blob, another one, a refusal, and what a pull makes of it."""

from oci2boot.oci.image import Image
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.oci.unpack import Uncompressed
from tests.oci.registries import Fake, Handler, Respond

INSECURE = SourceOptions(tls_verify=False)


def pull(fake: Fake, options: SourceOptions = INSECURE, name: str = "some/image:v") -> Image:
    with open_source(Reference.parse(f"docker://{fake.address}/{name}"), options) as source:
        image = source.fetch()
        for layer in image.layers:
            with Uncompressed(source.open(layer), layer) as tar:
                tar.finish()
        return image


def big_blob(handler: Handler) -> bytes | None:
    """The large layer, when it is what is asked for."""
    assert handler.fake.layout
    name = handler.path.rpartition("/")[2]
    path = handler.fake.layout.blob_path(name)
    if "/blobs/" in handler.path and path.exists() and path.stat().st_size > 1 << 20:
        return path.read_bytes()
    return None


def start_of(handler: Handler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def breaking_every(step: int, *, ranges: bool = True) -> Respond:
    def respond(handler: Handler) -> bool:
        data = big_blob(handler)
        if data is None:
            return False
        at = start_of(handler) if ranges else 0
        headers = {"Content-Range": f"bytes {at}-{len(data) - 1}/{len(data)}"} if at else {}
        if not ranges:
            # Each connection gets further than the last one.
            end = step * len(handler.fake.paths("/blobs/"))
            handler.send(200, data[:end], promised=len(data) if end < len(data) else None)
        elif at + step >= len(data):
            handler.send(206 if at else 200, data[at:], headers)
        else:
            handler.send(206 if at else 200, data[at : at + step], headers, promised=len(data) - at)
        return True

    return respond


def once(answer: Respond, path: str, times: int = 1) -> Respond:
    count = 0

    def respond(handler: Handler) -> bool:
        nonlocal count
        if path in handler.path and count < times:
            count += 1
            return answer(handler)
        return False

    return respond


def status(code: int, **headers: str) -> Respond:
    def respond(handler: Handler) -> bool:
        handler.send(code, b"{}", {key.replace("_", "-"): value for key, value in headers.items()})
        return True

    return respond


def serving(edit: object, part: str) -> Respond:
    def respond(handler: Handler) -> bool:
        assert handler.fake.layout
        name = handler.path.rpartition("/")[2]
        path = handler.fake.layout.blob_path(name if ":" in name else handler.fake.layout.manifests[0]["digest"])
        if part not in handler.path or not path.exists():
            return False
        assert callable(edit)
        handler.send(200, edit(path.read_bytes()), {"Content-Type": handler.fake.layout.manifests[0]["mediaType"]})
        return True

    return respond
