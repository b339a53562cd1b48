"""Layers from a source, several at once: what the store holds is not fetched again."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event as Flag
from threading import Lock
from typing import Final, TypeVar

from oci2boot.digest import OciDigest
from oci2boot.formats.tar import Entry
from oci2boot.oci.image import Image, ImageSource
from oci2boot.oci.manifest import Layer
from oci2boot.oci.unpack import Uncompressed
from oci2boot.store.layers import has_layer, read_layer, stage_layer
from oci2boot.store.objects import ObjectBatch, commit
from oci2boot.store.repository import Repository
from oci2boot.workflows.progress import Report, Step

WORKERS: Final = 2
"""Layers in work at a time; each has a second thread that reads and inflates ahead."""

GROUP: Final = 512 << 20
"""Bytes of new objects that are committed together."""

T = TypeVar("T")


class _StoppedError(Exception):
    """Another layer failed."""


def each_layer(
    source: ImageSource,
    layers: Sequence[Layer],
    work: Callable[[Layer, Callable[[int], bytes]], T],
    report: Report,
) -> dict[OciDigest, T]:
    """Give each layer's tar to `work`, the largest first, and return what it made of each diff_id.

    The first failure stops them all and is raised.
    """
    stop = Flag()

    def run(layer: Layer) -> T:
        if stop.is_set():
            raise _StoppedError
        task = task_of(layer)

        def progress(_: Layer, done: int) -> None:
            report(Step(task, done, layer.size))

        with Uncompressed(source.open(layer), layer, progress=progress) as tar:

            def read(size: int) -> bytes:
                if stop.is_set():
                    raise _StoppedError
                return tar.read(size)

            result = work(layer, read)
        report(Step(task, layer.size, layer.size, finished=True, note="unpacked"))
        return result

    futures: dict[OciDigest, Future[T]] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for layer in sorted({layer.diff_id: layer for layer in layers}.values(), key=lambda layer: -layer.size):
                futures[layer.diff_id] = pool.submit(run, layer)
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    errors = [error for future in futures.values() if (error := future.exception())]
    for error in errors:
        if not isinstance(error, _StoppedError):
            raise error
    return {diff_id: future.result() for diff_id, future in futures.items()}


def task_of(layer: Layer) -> str:
    return f"layer {layer.digest.hex[:12]}"


class _Committer:
    """Commits layers in groups: one sync for many, and no more than a group is lost when the machine stops."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._batches: list[ObjectBatch] = []
        self._lock = Lock()

    def add(self, batch: ObjectBatch) -> None:
        with self._lock:
            self._batches.append(batch)
            if sum(batch.written for batch in self._batches) >= GROUP:
                self._commit()

    def finish(self) -> None:
        with self._lock:
            self._commit()

    def _commit(self) -> None:
        batches, self._batches = self._batches, []
        commit(self._repository, batches)


def ensure_layers(source: ImageSource, image: Image, repository: Repository, report: Report) -> list[list[Entry]]:
    """Return the entries of every layer, lowest first; those that the store lacks are fetched, checked and stored.

    If one fails, those that were whole by then are kept, and are not fetched again.
    """
    missing = []
    for layer in image.layers:
        if has_layer(repository, layer.diff_id):
            report(Step(task_of(layer), layer.size, layer.size, finished=True, note="already stored"))
        else:
            missing.append(layer)
    if missing:
        repository.check_writable()
    committer = _Committer(repository)

    def store(layer: Layer, read: Callable[[int], bytes]) -> list[Entry]:
        entries, batch = stage_layer(repository, layer.diff_id, read)
        committer.add(batch)
        return entries

    try:
        fresh = each_layer(source, missing, store, report)
    finally:
        committer.finish()
    return [fresh.get(layer.diff_id) or list(read_layer(repository, layer.diff_id)) for layer in image.layers]
