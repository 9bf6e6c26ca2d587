"""Writing an OCI layout as a directory, so that it can be interrupted at any point and gone on with.

A blob is under its name when it is whole, verified and durable; index.json comes last. So a directory that was left in
the middle is a valid layout without the images that were still to come.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgfs.archives import layout
from imgfs.archives.contract import Moved
from imgfs.archives.exporting import Open, verified
from imgfs.archives.layout import Listed
from imgfs.archives.names import blob_name
from imgfs.archives.stream import PIECE
from imgfs.disk.durable import fsync_path, is_temporary_name, publish, temporary_name
from imgfs.errors import AlreadyExists, Busy, Malformed
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import check_depth


def write_layout(
    path: Path, images: list[Listed], blobs: Mapping[Digest, int], open_blob: Open, moved: Moved = lambda _: None
) -> None:
    """Add `images` with `blobs` (digest and size) to the layout at `path`, which is made if need be.

    What is there and has its digest is left alone; other images of the layout stay, a name that it has moves. Raises
    AlreadyExists where `path` is something else, Busy while another export writes there, VerificationFailed, OSError.
    """
    _make_directory(path)
    with _alone(path):
        index = _start(path)
        for algorithm in {digest.algorithm for digest in blobs}:
            _make_directory(path / "blobs" / algorithm)
            _sweep(path / "blobs" / algorithm)
        for digest in sorted(blobs):
            _write_blob(path / blob_name(digest), digest, blobs[digest], open_blob, moved)
        _write(path / layout.INDEX_FILE, [layout.write_index(images, _others(index, images))])


def _start(path: Path) -> list[Any]:
    """What the layout lists so far; makes `oci-layout` where there is nothing but what a killed export left.

    Nothing is swept before it is known to be a layout: in a directory of something else these names are somebody's.
    """
    if all(_is_left_behind(entry) for entry in os.scandir(path)):
        _write(path / layout.LAYOUT_FILE, [layout.LAYOUT])
    elif not (path / layout.LAYOUT_FILE).is_file():
        raise AlreadyExists(f"{path}: is not empty and no OCI layout; name another directory")
    _sweep(path)
    try:
        data = (path / layout.INDEX_FILE).read_bytes()
    except FileNotFoundError:
        return []
    return _listed(path, data)


def _listed(path: Path, data: bytes) -> list[Any]:
    check_depth(data, layout.INDEX_FILE)
    try:
        found: Any = json.loads(data)["manifests"] or []
        return [one for one in found if one["digest"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Malformed(f"{path}/{layout.INDEX_FILE}: is no index: {error}") from None


def _sweep(path: Path) -> None:
    """Remove what a killed export left: plain files of the very names that exports give."""
    for entry in os.scandir(path):
        if _is_left_behind(entry):
            os.unlink(entry.path)


def _is_left_behind(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file that an export was killed over."""
    return is_temporary_name(entry.name) and entry.is_file(follow_symlinks=False)


def _others(listed: list[Any], images: list[Listed]) -> Iterator[Any]:
    """What stays listed beside `images`."""
    names = {name for one in images for name in one.names}
    nameless = {one.descriptor.digest for one in images if not one.names}
    for raw in listed:
        name = layout.ref_name(raw)
        if name not in names and (name is not None or raw["digest"] not in nameless):
            yield raw


def _write_blob(final: Path, digest: Digest, size: int, open_blob: Open, moved: Moved) -> None:
    if _is_whole(final, digest, size):
        moved(size)
        return
    _write(final, verified(digest, _told(open_blob(digest), moved)))


def _told(pieces: Iterator[bytes], moved: Moved) -> Iterator[bytes]:
    for piece in pieces:
        moved(len(piece))
        yield piece


def _write(final: Path, pieces: Iterable[bytes]) -> None:
    """Unlike what lies in a state directory, this is for everybody whom the umask lets in."""
    temporary = final.parent / temporary_name()
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        fsync_path(temporary)
        publish(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_path(path.parent)


def _is_whole(path: Path, digest: Digest, size: int) -> bool:
    """Whether the blob is there, every byte of it right."""
    try:
        if path.stat().st_size != size:
            return False
        running = digest.new_hash()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                running.update(piece)
        return running.hexdigest() == digest.hex
    except FileNotFoundError:
        return False


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """While this is held, no other export writes there: it would sweep what this one has not renamed yet."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(directory, path)
        yield
    finally:
        os.close(directory)


def _lock(directory: int, path: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{path}: another export writes there; wait for it") from None
