"""Checks one thing after another in a state directory, with or without a running daemon.

Owns the list of things to check. A place is a path relative to the state directory. A running daemon may be changing a
thing during the check, so a finding counts only if a second check, a moment later, has it too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from imgfs.check.content import Moved, check_blob, check_ingest, check_layer, check_view, is_temporary
from imgfs.check.finding import Finding, aside
from imgfs.check.records import check_config, check_copy, check_database, check_directory, check_plain, check_snapshot
from imgfs.database.format import ASIDE, FILE
from imgfs.database.frozen import open_read_only
from imgfs.database.kept import Kept
from imgfs.images.catalog import proven_size
from imgfs.oci.digest import Digest, is_digest
from imgfs.rescue.row_copy import FILE as COPY
from imgfs.rescue.row_copy import OLD
from imgfs.snapshots import rows
from imgfs.snapshots.ids import shown
from imgfs.snapshots.rows import SnapshotKind

_CONFIG = "imgfs.toml"
_PLAIN = ("lock", "log", "log.1")
_DEPTHS = {"blobs": 4, "layers": 3, "views": 2, "ingest": 2, "snapshots": 2}
"""The number of path components of the places below each directory."""
_HASHED = ("blobs/*/*/*", "layers/*/*/tar")
"""The files that a deep check reads completely."""


def nothing_moved(_: int) -> None:
    """Ignore the progress."""


class Examiner:
    """The checks of one state directory. `deep` reads and hashes every byte; `moved` receives the numbers of bytes.

    Use it as a context manager, in one thread. It reads the database once; for a second check, use a second Examiner.
    """

    def __init__(self, state: Path, kept: Sequence[Kept], *, deep: bool = False, moved: Moved = nothing_moved) -> None:
        self._state = state
        self._kept = kept
        self._deep = deep
        self._moved = moved
        self._db: sqlite3.Connection | None = None
        self._rows: rows.Rows | None = None
        self._by_number: dict[int, rows.Info] = {}
        self._files: dict[str, Callable[[], Finding | None]] = {
            FILE: lambda: check_database(state, kept, deep=deep),
            COPY: lambda: check_copy(state / COPY, COPY, kept),
            OLD: lambda: check_copy(state / OLD, OLD, kept),
            _CONFIG: lambda: check_config(state),
            **{name: partial(check_plain, state / name, name) for name in _PLAIN},
        }

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        if self._db is not None:
            self._db.close()
        self._db = self._rows = None

    def places(self) -> Iterator[str]:
        """All places to check. The database comes first, because other checks use it."""
        yield from (FILE, COPY, OLD, _CONFIG, *_PLAIN, *_DEPTHS)
        yield from self._told(self._state.glob(f"{ASIDE}*"))
        yield from sorted({*self._found("snapshots"), *(f"snapshots/{one}" for one in self._numbers())})
        for top in ("blobs", "layers", "views", "ingest"):
            yield from self._found(top)

    def size(self) -> int:
        """About how many bytes the checks will read."""
        found = self._state.glob("views/*"), *(self._state.glob(one) for one in _HASHED if self._deep)
        return sum(_size(path) for paths in found for path in paths)

    def examine(self, place: str) -> Finding | None:
        """Check one place; None if it is sound or no place. Raises OSError if the disk cannot be read."""
        path, (top, *below) = self._state / place, place.split("/")
        if place in _DEPTHS:
            return check_directory(path, place)
        if ".." in below or len(below) + 1 != _DEPTHS.get(top, 1) or is_temporary(path.name):
            return None
        place = shown(place)
        match top:
            case "blobs":
                return check_blob(path, place, self._size_of_blob(path), deep=self._deep, moved=self._moved)
            case "layers":
                return check_layer(path, place, deep=self._deep, moved=self._moved)
            case "views":
                return check_view(path, place, self._moved)
            case "ingest":
                return check_ingest(path, place)
            case "snapshots":
                return self._check_snapshot(path, place)
            case _:
                return self._check_file(place)

    def _check_file(self, place: str) -> Finding | None:
        if place.startswith(ASIDE):
            return aside(place)
        return self._files[place]() if place in self._files else None

    def _check_snapshot(self, path: Path, place: str) -> Finding | None:
        found = self._users()
        if found is None or not path.name.isdecimal():
            return None
        number = int(path.name)
        return check_snapshot(self._state, place, self._by_number.get(number), is_removed=number in found.removed)

    def _numbers(self) -> list[int]:
        """The numbers of the snapshots that must have a directory."""
        found = self._users()
        return [one.number for one in found.infos if one.kind is not SnapshotKind.VIEW] if found else []

    def _users(self) -> rows.Rows | None:
        """Users' snapshots in the database; None if the database cannot be read."""
        if self._rows is None and (db := self._connect()):
            with suppress(sqlite3.Error, ValueError, TypeError):  # check_database reports unreadable rows
                self._rows = rows.select(db)
                self._by_number = {one.number: one for one in self._rows.infos}
        return self._rows

    def _size_of_blob(self, path: Path) -> int | None:
        digest = f"{path.parent.parent.name}:{path.name}"
        if is_digest(digest) and (db := self._connect()):
            with suppress(sqlite3.Error):
                return proven_size(db, Digest(digest))
        return None

    def _connect(self) -> sqlite3.Connection | None:
        if self._db is None and (self._state / FILE).exists():
            with suppress(sqlite3.Error):
                self._db = open_read_only(self._state / FILE)
        return self._db

    def _found(self, top: str) -> Iterator[str]:
        pattern = "/".join([top, *"*" * (_DEPTHS[top] - 1)])
        yield from self._told(path for path in self._state.glob(pattern) if path.name != "empty")

    def _told(self, paths: Iterator[Path]) -> Iterator[str]:
        for path in sorted(paths):
            yield str(path.relative_to(self._state))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
