"""The least cost of pulling an image in Python: a pipeline of threads for each layer, and nothing else.

http.client -> sha256 of the blob -> inflate -> sha256 of the layer -> a sparse tar file, in pieces through bounded
queues, with all layers in parallel. Both digests are checked. Nothing is fsynced, which favours this contestant.

Run: python -m benchmarks.floor HOST REPOSITORY TAG DIRECTORY. It prints its own seconds, without the interpreter's
start.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, Protocol

from isal import isal_zlib

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor
else:
    from backports.zstd import ZstdDecompressor

PIECE = 512 << 10
PIECES_IN_QUEUE = 8
_HOLE = bytes(64 << 10)
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Pieces = Queue[bytes | None]


class Inflater(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


def pieces(queue: Pieces) -> Iterator[bytes]:
    """Yield the pieces of a queue until None."""
    while (piece := queue.get()) is not None:
        yield piece


def stage(work: Callable[[Iterator[bytes]], Any], queue: Pieces) -> Any:
    """Run one stage. After a failure, empty its queue, so that the stages before it do not block forever."""
    source = pieces(queue)
    try:
        return work(source)
    finally:
        for _ in source:
            pass


def spread(source: Iterator[bytes], *queues: Pieces) -> None:
    """Put every piece into every queue, and the end marker also if the source fails."""
    try:
        for piece in source:
            for queue in queues:
                queue.put(piece)
    finally:
        for queue in queues:
            queue.put(None)


def digest(source: Iterator[bytes]) -> str:
    state = hashlib.sha256()
    for piece in source:
        state.update(piece)
    return f"sha256:{state.hexdigest()}"


def write_sparse(source: Iterator[bytes], path: Path) -> None:
    """Write a file. Every whole block of 64 KiB zeros in a piece becomes a hole."""
    with path.open("wb", buffering=0) as file:
        end = 0
        for piece in source:
            if any(piece.startswith(_HOLE, at) for at in range(0, len(piece), len(_HOLE))):
                _write_around_holes(file.write, file.seek, piece, end)
            else:
                file.write(piece)
            end += len(piece)
            file.seek(end)
        file.truncate(end)


def _write_around_holes(write: Callable[[bytes], Any], seek: Callable[[int], Any], piece: bytes, start: int) -> None:
    for at in range(0, len(piece), len(_HOLE)):
        if not piece.startswith(_HOLE, at):
            seek(start + at)
            write(piece[at : at + len(_HOLE)])


class Uncompressed:
    """The decompressor of an uncompressed layer."""

    def decompress(self, data: bytes, /) -> bytes:
        return data


def inflater_of(media_type: str) -> Inflater:
    if media_type.endswith("zstd"):
        return ZstdDecompressor()
    return isal_zlib.decompressobj(16 + zlib.MAX_WBITS) if media_type.endswith("gzip") else Uncompressed()


def inflate(inflater: Inflater, source: Iterator[bytes]) -> Iterator[bytes]:
    for piece in source:
        yield inflater.decompress(piece)


class Repository:
    """One repository of a plain registry. Each request uses its own connection."""

    def __init__(self, host: str, name: str) -> None:
        self._host, self._name = host, name

    def fetch(self, kind: str, reference: str) -> Iterator[bytes]:
        connection = http.client.HTTPConnection(self._host)
        connection.request("GET", f"/v2/{self._name}/{kind}/{reference}", headers={"Accept": _MANIFEST})
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{self._name} {reference}: status {response.status}")
        while piece := response.read(PIECE):
            yield piece
        connection.close()

    def json(self, kind: str, reference: str) -> Any:
        return json.loads(b"".join(self.fetch(kind, reference)))


def pull_layer(repository: Repository, descriptor: dict[str, Any], path: Path) -> str:
    """Pull one layer into a sparse tar file, and return its diff ID. Raises ValueError if the blob's digest differs."""
    compressed: Pieces = Queue(PIECES_IN_QUEUE)
    blob: Pieces = Queue(PIECES_IN_QUEUE)
    tar: Pieces = Queue(PIECES_IN_QUEUE)
    layer: Pieces = Queue(PIECES_IN_QUEUE)
    inflater = inflater_of(descriptor["mediaType"])
    with ThreadPoolExecutor(5) as threads:
        network = threads.submit(spread, repository.fetch("blobs", descriptor["digest"]), blob, compressed)
        blob_digest = threads.submit(stage, digest, blob)
        inflated = threads.submit(stage, lambda source: spread(inflate(inflater, source), layer, tar), compressed)
        diff_id = threads.submit(stage, digest, layer)
        written = threads.submit(stage, lambda source: write_sparse(source, path), tar)
    for step in (network, inflated, written):
        step.result()
    if blob_digest.result() != descriptor["digest"]:
        raise ValueError(f"{descriptor['digest']}: the bytes have the digest {blob_digest.result()}")
    return diff_id.result()


def pull(host: str, name: str, tag: str, directory: Path) -> None:
    """Pull an image into a directory, one tar for each layer.

    Raises ValueError if a digest differs from the promised one.
    """
    repository = Repository(host, name)
    manifest = repository.json("manifests", tag)
    with ThreadPoolExecutor(len(manifest["layers"]) + 1) as threads:
        config = threads.submit(repository.json, "blobs", manifest["config"]["digest"])
        layers = [
            threads.submit(pull_layer, repository, descriptor, directory / f"{number}.tar")
            for number, descriptor in enumerate(manifest["layers"])
        ]
    found, promised = [layer.result() for layer in layers], config.result()["rootfs"]["diff_ids"]
    if found != promised:
        raise ValueError(f"{name}:{tag}: the layers have the diff IDs {found}, the config says {promised}")


def main() -> None:
    host, name, tag, directory = sys.argv[1:]
    begin = time.perf_counter()
    pull(host, name, tag, Path(directory))
    print(time.perf_counter() - begin)


if __name__ == "__main__":
    threading.stack_size(256 << 10)
    main()
