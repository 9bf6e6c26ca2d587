"""Checks of stored bytes: blobs, layers, metadata images, unfinished writes. They change nothing.

Each function checks one thing and returns the first fault that it finds, because later faults follow from it. A thing
that is removed during the check is no finding.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

from imgfs.check.finding import Finding, aside, damaged, derived, stranger
from imgfs.content.ingests.meta import decode
from imgfs.content.unproven import final_path
from imgfs.disk.durable import DAMAGED, TEMPORARY
from imgfs.erofs.superblock import is_outdated, is_whole
from imgfs.errors import ImgfsError, StorageFailed
from imgfs.layers import files
from imgfs.layers.index import LayerIndex
from imgfs.oci.digest import Digest, is_digest

_PIECE = 1 << 20

Moved = Callable[[int], object]
"""Receives the number of bytes read. An exception from it ends the check."""


def check_blob(path: Path, place: str, size: int | None, *, deep: bool, moved: Moved) -> Finding | None:
    """Check a blob: its name, and its size if `size` is known; `deep` hashes it."""
    digest = f"{path.parent.parent.name}:{path.name}"
    if path.name.endswith(DAMAGED):
        return aside(place)
    if final_path(path) is not None:
        return None  # a writer is publishing it, or the next start verifies its bytes
    if not is_digest(digest) or path.parent.name != path.name[:2]:
        return stranger(place)
    if not is_plain(path):
        return damaged(place, "is no plain file")
    found = _size_of(path)
    if found is not None and size not in (None, found):
        return damaged(place, f"has {found} bytes, {size} were stored")
    if deep and not _has_digest(path, Digest(digest), moved):
        return damaged(place, "its bytes have another digest")
    return None


def check_layer(directory: Path, place: str, *, deep: bool, moved: Moved) -> Finding | None:
    """Check a layer: its tar exists and has the size that its index records; `deep` hashes it.

    A missing index, or one of an older imgfs, is no fault: imgfs makes it when it is needed.
    """
    diff_id, tar, index = f"{directory.parent.name}:{directory.name}", directory / files.TAR, directory / files.INDEX
    if directory.name.endswith(DAMAGED):
        return aside(place)
    if not is_digest(diff_id):
        return stranger(place)
    if not all(map(is_plain, (tar, index))) or _is_no_directory(directory):
        return damaged(place, "holds what is no plain file")
    size = _size_of(tar)
    if size is None:
        return derived(place, "has no tar") if directory.exists() else None
    stored = _stored_size(directory, size)
    if stored not in (None, size):
        return damaged(place, f"its tar has {size} bytes, {stored} were stored")
    if deep and not _has_digest(tar, Digest(diff_id), moved):
        return damaged(place, "its tar has another digest")
    if stored is None:
        return derived(f"{place}/index", "is torn", "index")
    return None


def check_view(path: Path, place: str, moved: Moved) -> Finding | None:
    """Check the checksum of a metadata image. An image of an older imgfs is no fault."""
    if is_plain(path) and _is_whole(path, moved):
        return None
    return derived(place, "is torn")


def check_ingest(directory: Path, place: str) -> Finding | None:
    """Check an unfinished write: its record is readable, and all bytes that the record calls synced exist."""
    data, record = directory / "data", directory / "meta"
    if directory.name.endswith(DAMAGED):
        return aside(place)
    if not all(map(is_plain, (data, record))) or _is_no_directory(directory):
        what, follows = "holds what is no plain file", "the write cannot go on"
        return Finding(place, what, follows, "repair sets it aside; send the bytes again", "aside")
    size = _size_of(data)
    if size is None:
        what, follows, cure = "its bytes are gone", "the write begins again", "repair removes its record"
        return Finding(place, what, follows, cure, "remove") if directory.exists() else None
    try:
        durable = decode(record.read_bytes()).durable
    except (OSError, ImgfsError) as error:
        what, follows = f"its record cannot be read ({error})", "the write cannot go on under its name"
        cure = "repair sets it aside; send the bytes again"
        return Finding(place, what, follows, cure, "aside") if directory.exists() else None
    if size < durable:
        what, follows = f"has {size} bytes, {durable} were on disk", "the write goes on from there"
        return Finding(place, what, follows, "repair corrects its record; send the rest again", "record")
    return None


def is_plain(path: Path) -> bool:
    """Whether `path` is a regular file or missing. Anything else is damage, and opening a pipe would block."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True


def _is_no_directory(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def is_temporary(name: str) -> bool:
    """Whether a process is writing the file, or was killed while writing it."""
    return name.startswith(TEMPORARY)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _stored_size(directory: Path, found: int) -> int | None:
    """The size that a layer's tar had when it was stored; `found` if nothing records it; None if the index is torn."""
    index = directory / files.INDEX
    if index.exists() and not files.has_outdated_index(directory):
        return _index_size(index)
    recorded = files.recorded_size(directory)
    return found if recorded is None else recorded


def _index_size(path: Path) -> int | None:
    """The size of the tar in its index; None if the index cannot be read."""
    try:
        index = LayerIndex.open(path)
        for _ in index:  # a valid checksum does not prove a valid index
            pass
        return index.tar_size
    except (OSError, StorageFailed):
        return None


def _is_whole(path: Path, moved: Moved) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            moved(len(mapped))
            return is_whole(mapped) or is_outdated(mapped)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
        return False


def _has_digest(path: Path, digest: Digest, moved: Moved) -> bool:
    running = digest.new_hash()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                running.update(piece)
                moved(len(piece))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return running.hexdigest() == digest.hex
