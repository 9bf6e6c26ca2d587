"""Checks of records: the database, its row copy, users' snapshots, the configuration, and the directories themselves.

They change nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from imgfs.check.content import is_plain
from imgfs.check.finding import Finding
from imgfs.config import load_config
from imgfs.content.opening import lost
from imgfs.database.failures import check, is_damage
from imgfs.database.format import FILE, Foreign, check_origin
from imgfs.database.frozen import open_read_only
from imgfs.database.kept import Kept
from imgfs.errors import ImgfsError, Malformed
from imgfs.rescue.row_copy import read
from imgfs.snapshots.ids import shown
from imgfs.snapshots.rows import Info, SnapshotKind

_LOST = "names, labels, leases and snapshots are not known"
_STUCK = "the daemon does not start, and repair cannot"
_REBUILT = "repair and the next mount set it aside and rebuild it from its copy and from files"


def check_database(state: Path, kept: Sequence[Kept], *, deep: bool) -> Finding | None:
    """Check that the database exists if it ever did, that this imgfs knows its format, and that it is sound."""
    path = state / FILE
    if not is_plain(path):
        return Finding(FILE, "is no plain file", _LOST, "move it away; the next mount makes it anew")
    if reason := lost(state):
        return Finding(FILE, f"is lost ({reason.rpartition(' ')[2]})", _LOST, _REBUILT, "database")
    return _check_tables(path, kept, deep=deep) if path.exists() else None


def _check_tables(path: Path, kept: Sequence[Kept], *, deep: bool) -> Finding | None:
    try:
        with closing(open_read_only(path)) as db:
            check_origin(db, path, {table for one in kept for table in one.tables})
            check(db, deep=deep)
            for one in kept:
                one.dump(db)
    except Foreign as error:
        what, _, cure = error.message.removeprefix(f"{path}: ").partition("; ")
        return Finding(FILE, what, "the daemon does not start with it", cure)
    except sqlite3.Error as error:
        if is_damage(error):
            return Finding(FILE, f"is damaged ({error})", _LOST, _REBUILT, "database")
        return Finding(FILE, str(error), "the daemon may not start", "check the disk and which other process uses it")
    return None


def check_copy(path: Path, place: str, kept: Sequence[Kept]) -> Finding | None:
    """Check a row copy. A torn copy is a fault; a missing one is not."""
    try:
        if not is_plain(path):
            raise Malformed("no plain file")
        read(path, kept)
    except FileNotFoundError:
        return None
    except Foreign as error:
        what, _, cure = error.message.partition("; ")
        return Finding(place, what.removeprefix(f"{path.name}: "), "the database is not copied any more", cure)
    except (OSError, Malformed) as error:
        follows = "names, labels, leases and views would be lost with the database"
        return Finding(place, f"cannot be read ({error})", follows, "repair writes it anew from the database", "copy")
    return None


def check_snapshot(state: Path, place: str, info: Info | None, *, is_removed: bool) -> Finding | None:
    """Check that a user's snapshot has both its row and its directory; `info` is the row."""
    upper = state / place / "upper"
    if info is not None and info.kind is not SnapshotKind.VIEW and not upper.is_dir():
        what = f"the changes of snapshot {shown(info.id)} are lost"
        return Finding(place, what, "it cannot be used", f"imgfs snapshot rm {shown(info.id)}")
    if info is None and not is_removed and upper.is_dir() and any(upper.iterdir()):
        what, follows = "holds changes but is not a snapshot in the database", "no command shows it"
        return Finding(place, what, follows, "repair, without a daemon, makes a snapshot of it", "adopt")
    return None


def check_plain(path: Path, place: str) -> Finding | None:
    """Check that a path is a regular file or missing."""
    if is_plain(path):
        return None
    return Finding(place, "is no plain file", _STUCK, "move it away; the next mount makes it anew")


def check_directory(path: Path, place: str) -> Finding | None:
    """Check that a path is a directory or missing; a missing one is created when it is needed."""
    if path.is_dir() or not os.path.lexists(path):
        return None
    return Finding(place, "is no directory", _STUCK, "move it away; the next mount makes it anew")


def check_config(state: Path) -> Finding | None:
    """Check that the configuration in the state directory can be read."""
    try:
        load_config(None, state)
    except ImgfsError as error:
        return Finding("imgfs.toml", error.message, "the daemon does not start with it", "mend it with an editor")
    return None
