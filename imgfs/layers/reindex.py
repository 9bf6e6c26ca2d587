"""Builds the index of a layer from its tar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from imgfs.disk.calls import HOST
from imgfs.disk.durable import fsync_path, publish, temporary_name
from imgfs.errors import VerificationFailed
from imgfs.layers import files
from imgfs.layers.index import IndexWriter, Weight
from imgfs.layers.tar import TarWalk
from imgfs.oci.digest import Digest, Hash

_READ = 1 << 20


def write_index(file: int, tar: Iterable[bytes]) -> Weight:
    """Walk the pieces of a tar and write its index into the descriptor `file`. Blocks.

    Memory holds the entries of one piece. Raises what TarWalk and the iteration raise, and OSError.
    """
    walk, index, size = TarWalk(), IndexWriter(file), 0
    for piece in tar:
        walk.feed(piece)
        index.append(walk.take())
        size += len(piece)
    index.append(walk.close())
    index.seal(size, walk.weight)
    return walk.weight


def hashing(pieces: Iterable[bytes], running: Hash) -> Iterator[bytes]:
    """Yield `pieces`, and update `running` with each of them."""
    for piece in pieces:
        running.update(piece)
        yield piece


def reindex(directory: Path, diff_id: Digest, moved: Callable[[int], object]) -> None:
    """Walk the tar of a stored layer and replace its index, durably. Blocks. Calls `moved` with the bytes of each
    piece.

    Raises VerificationFailed if the digest of the tar is not `diff_id`, and OSError. After an error the index is
    unchanged. A killed process leaves a temporary file beside the layer, which the store removes at its next start.
    """
    running, temporary = diff_id.new_hash(), directory.with_name(temporary_name())
    try:
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_index(file, hashing(_told(directory / files.TAR, moved), running))
        finally:
            os.close(file)
        if running.hexdigest() != diff_id.hex:
            raise VerificationFailed(f"layer {diff_id}: its tar has another digest; it is set aside")
        fsync_path(temporary)
        publish(temporary, directory / files.INDEX)
    finally:
        with suppress(FileNotFoundError):
            HOST.unlink(temporary)


def _told(path: Path, moved: Callable[[int], object]) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as tar:
        while piece := tar.read(_READ):
            moved(len(piece))
            yield piece
