"""Write an OCI layout as a directory. The export can be interrupted at any point and continued.

A blob gets its name when it is complete, verified and durable; index.json is written last. So an interrupted export
leaves a valid layout without the images that were not finished.
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
    """Add `images` with `blobs` (digest to size) to the layout at `path`, which is created if needed.

    Blobs that exist with the right digest are kept. Other images of the layout stay; a name that it has already moves
    to the new image. Raises AlreadyExists if `path` is not a layout, Busy while another export writes there,
    VerificationFailed, OSError.
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
    """Return what the layout lists so far.

    Creates `oci-layout` in a directory that is empty apart from temporary files.

    Temporary files are removed only in a layout: in another directory, files of these names belong to the user.
    """
    if all(_is_left_behind(entry) for entry in os.scandir(path)):
        _write(path / layout.LAYOUT_FILE, [layout.LAYOUT])
    elif not (path / layout.LAYOUT_FILE).is_file():
        raise AlreadyExists(f"{path}: is not empty and not an OCI layout; choose another directory")
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
        raise Malformed(f"{path}/{layout.INDEX_FILE}: is not an index: {error}") from None


def _sweep(path: Path) -> None:
    """Remove what a killed export left: regular files with the names that exports use."""
    for entry in os.scandir(path):
        if _is_left_behind(entry):
            os.unlink(entry.path)


def _is_left_behind(entry: os.DirEntry[str]) -> bool:
    """Return whether a file is the temporary file of a killed export."""
    return is_temporary_name(entry.name) and entry.is_file(follow_symlinks=False)


def _others(listed: list[Any], images: list[Listed]) -> Iterator[Any]:
    """Yield the descriptors that stay listed beside `images`."""
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
    """Write a file. Unlike a file of the state directory, it gets the mode that the umask allows."""
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
    """Return whether the blob exists and every byte of it is right."""
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
    """Hold the export lock in this context: another export would sweep the temporary files of this one."""
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
        raise Busy(f"{path}: another export is writing there; wait for it") from None
