"""Checking what holds bytes: blobs, layers, metadata images, unfinished writes. Nothing is changed.

Each function looks at one thing and returns what is wrong with it, if anything is: the first that is found, for what
comes behind it would follow from it. What vanishes meanwhile is no finding.
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
"""Told how many bytes were read; what it raises ends the check."""


def check_blob(path: Path, place: str, size: int | None, *, deep: bool, moved: Moved) -> Finding | None:
    """A blob under its name, of `size` bytes if that is known; `deep` hashes it."""
    digest = f"{path.parent.parent.name}:{path.name}"
    if path.name.endswith(DAMAGED):
        return aside(place)
    if final_path(path) is not None:
        return None  # somebody is at work on it, or the next start looks at its bytes
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
    """A layer: its tar is there, of the size that its index has; `deep` hashes it.

    No index is no harm, nor is one of an older imgfs: it is made when it is needed.
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
    """A metadata image, by its checksum. One that an older imgfs made is no harm."""
    if is_plain(path) and _is_whole(path, moved):
        return None
    return derived(place, "is torn")


def check_ingest(directory: Path, place: str) -> Finding | None:
    """An unfinished write: its record can be read, and all bytes are there that were recorded as synced."""
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
    """Whether it is a regular file, or not there: what else lies there is damage, and opening a pipe would wait."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True


def _is_no_directory(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def is_temporary(name: str) -> bool:
    """Whether somebody is at work on it, or was killed over it."""
    return name.startswith(TEMPORARY)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _stored_size(directory: Path, found: int) -> int | None:
    """The size that a layer's tar had when it was stored: `found` where nothing tells; None where the index is torn."""
    index = directory / files.INDEX
    if index.exists() and not files.has_outdated_index(directory):
        return _index_size(index)
    recorded = files.recorded_size(directory)
    return found if recorded is None else recorded


def _index_size(path: Path) -> int | None:
    """The size of the tar as its index has it; None for an index that does not read back."""
    try:
        index = LayerIndex.open(path)
        for _ in index:  # what a sound sum is over may be no index
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
