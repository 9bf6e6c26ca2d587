"""The checks: each walks one part of a state directory and yields what is wrong there. Nothing is changed.

They work beside a running daemon: what vanishes or appears meanwhile is no finding.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from imgfs.check.finding import NONE, Finding, damaged, derived
from imgfs.content.durable import TEMPORARY
from imgfs.content.meta import decode
from imgfs.erofs.superblock import is_whole
from imgfs.errors import ImgfsError, StorageFailed
from imgfs.layers.index import decode_index
from imgfs.layers.store import SIZE_BYTES
from imgfs.oci.digest import Digest, is_digest

_PIECE = 1 << 20
ASIDE = ".damaged"
"""How names end of what was set aside; it is somebody's last copy, so it is told of and never removed."""

Moved = Callable[[int], object]
"""Told how many bytes were read, for a progress bar."""


def check_blobs(state: Path, deep: bool, moved: Moved) -> Iterator[Finding]:
    """Every blob under its name; `deep` hashes it."""
    for path in _files(state, "blobs/*/*/*"):
        told = _told(state, path)
        digest = f"{path.parent.parent.name}:{path.name}"
        if path.name.endswith(ASIDE):
            yield _aside(told)
        elif not is_digest(digest) or path.parent.name != path.name[:2]:
            yield Finding(told, "is no blob by its name", "it is never served", "move it away", NONE)
        elif deep and not _has_digest(path, Digest(digest), moved):
            yield damaged(told, "its bytes have another digest")


def check_layers(state: Path, deep: bool, moved: Moved) -> Iterator[Finding]:
    """Every layer: its tar is there, of the size that its index has; `deep` hashes it. A missing index is no harm."""
    for directory in sorted(state.glob("layers/*/*")):
        told = _told(state, directory)
        if directory.name.endswith(ASIDE):
            yield _aside(told)
        elif not directory.name.startswith(TEMPORARY):
            yield from _check_layer(state, directory, deep, moved)


def _check_layer(state: Path, directory: Path, deep: bool, moved: Moved) -> Iterator[Finding]:
    diff_id, tar, index = f"{directory.parent.name}:{directory.name}", directory / "tar", directory / "index"
    told = _told(state, directory)
    if not is_digest(diff_id):
        yield Finding(told, "is no layer by its name", "it is never served", "move it away", NONE)
        return
    size = _size_of(tar)
    if size is None:
        if directory.exists():
            yield derived(told, "has no tar")
        return
    stored = _index_size(index) if index.exists() else size
    if stored is None:
        yield derived(f"{told}/index", "is torn, or of another version")
    elif stored != size:
        yield damaged(told, f"its tar has {size} bytes, {stored} were stored")
        return
    if deep and not _has_digest(tar, Digest(diff_id), moved):
        yield damaged(told, "its tar has another digest")


def check_views(state: Path, _deep: bool, moved: Moved) -> Iterator[Finding]:
    """Every metadata image, by its checksum."""
    for path in _files(state, "views/*"):
        if not path.name.startswith(TEMPORARY) and not _is_whole(path, moved):
            yield derived(_told(state, path), "is torn, or of another version")


def check_ingests(state: Path, _deep: bool, _moved: Moved) -> Iterator[Finding]:
    """Every unfinished write has a record that can be read."""
    for directory in sorted(state.glob("ingest/*")):
        if directory.is_dir() and not directory.name.startswith(TEMPORARY):
            try:
                decode((directory / "meta").read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ImgfsError) as error:
                what = f"its record cannot be read ({error})"
                cure = "the next mount removes it; send the bytes again"
                yield Finding(_told(state, directory), what, "the write cannot go on", cure, NONE)


def check_database(state: Path, deep: bool, _moved: Moved) -> Iterator[Finding]:
    """The database, by SQLite's own check, and that every snapshot in it has its directory."""
    path = state / "imgfs.db"
    if not path.exists():
        return
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as database:
            rows = database.execute("PRAGMA integrity_check(20)" if deep else "PRAGMA quick_check(20)").fetchall()
            numbers = database.execute(
                "SELECT number, name FROM user_snapshots WHERE kind IN ('active', 'committed')"
            ).fetchall()
    except sqlite3.Error as error:
        rows, numbers = [(str(error),)], []
    cure = "move it aside: blobs, layers and snapshots are found from their files, names are resolved again"
    yield from (
        Finding("imgfs.db", row[0], "names and labels may be wrong, or the daemon does not start", cure, NONE)
        for row in rows
        if row[0] != "ok"
    )
    for number, name in numbers:
        if not (state / f"snapshots/{number}/upper").is_dir():
            shown = os.fsdecode(name).encode(errors="backslashreplace").decode()
            what = f"the changes of snapshot {shown} are lost"
            yield Finding(f"snapshots/{number}", what, "it cannot be used", "remove the snapshot", NONE)


def _files(state: Path, pattern: str) -> Iterator[Path]:
    return (path for path in sorted(state.glob(pattern)) if path.is_file())


def _told(state: Path, path: Path) -> str:
    return os.fsencode(path.relative_to(state)).decode(errors="backslashreplace")


def _aside(told: str) -> Finding:
    return Finding(told, "was set aside as damaged", "it is not served", "remove it when nobody needs it", NONE)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _index_size(path: Path) -> int | None:
    """The size of the tar as its index has it; None for an index that does not read back."""
    try:
        data = path.read_bytes()
        decode_index(data[SIZE_BYTES:])
    except (FileNotFoundError, StorageFailed):
        return None
    return int.from_bytes(data[:SIZE_BYTES])


def _is_whole(path: Path, moved: Moved) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            moved(len(mapped))
            return is_whole(mapped)
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
