"""Repair of a state directory without a running daemon. The caller holds the lock. Repair is idempotent.

Derived files are removed or rebuilt; damaged files are set aside. Repair never deletes the only copy of anything. Each
step is one rename, so a kill leaves it done or not done.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from imgfs.check.content import Moved, is_plain
from imgfs.check.finding import Finding, Mend
from imgfs.content.ingests.meta import decode, write_again
from imgfs.database.format import FILE
from imgfs.database.frozen import open_read_only
from imgfs.database.migrations import migrate, transaction
from imgfs.disk.calls import HOST
from imgfs.disk.durable import aside_name, fsync_path, publish, temporary_name
from imgfs.errors import Malformed, VerificationFailed, from_os
from imgfs.layers.reindex import reindex
from imgfs.oci.digest import Digest
from imgfs.rescue.rebuild import Tables, rebuild
from imgfs.rescue.row_copy import FILE as COPY
from imgfs.rescue.row_copy import RowCopy, rows_of, save
from imgfs.snapshots.notes import adopt


class Repair:
    """Carries out the cures of findings."""

    def __init__(self, state: Path, tables: Tables, moved: Moved) -> None:
        self._state = state
        self._tables = tables
        self._moved = moved
        self._mends: dict[Mend, Callable[[Finding], str]] = {
            "aside": self._set_aside,
            "remove": self._remove,
            "index": self._reindex,
            "record": self._correct,
            "copy": self._copy,
            "database": self._rebuild,
            "adopt": self._adopt,
        }

    def mend(self, finding: Finding) -> str:
        """Do what `finding.mend` says; returns what was done, "" if repair can do nothing.

        Raises NoSpace, StorageFailed.
        """
        do = self._mends.get(finding.mend)
        try:
            return do(finding) if do else ""
        except FileNotFoundError:
            return "is gone"
        except OSError as error:
            raise from_os(error, finding.path) from None

    def _set_aside(self, finding: Finding) -> str:
        path = self._state / finding.path
        name = aside_name(path)
        publish(path, name)
        return f"set aside as {name.name}"

    def _remove(self, finding: Finding) -> str:
        """Rename to a temporary name first, which the next start sweeps: no half of a thing may keep its name."""
        path = self._state / finding.path
        gone = path.with_name(temporary_name())
        publish(path, gone)
        if gone.is_dir():
            shutil.rmtree(gone)  # not recorded: the durable rename is the removal, and the next start sweeps the rest
        else:
            HOST.unlink(gone)
        return "removed"

    def _reindex(self, finding: Finding) -> str:
        directory = (self._state / finding.path).parent
        try:
            reindex(directory, Digest(f"{directory.parent.name}:{directory.name}"), self._moved)
        except (VerificationFailed, Malformed):
            return self._set_aside(msgspec.structs.replace(finding, path=str(directory.relative_to(self._state))))
        return "made anew from the tar"

    def _correct(self, finding: Finding) -> str:
        directory = self._state / finding.path
        meta, size = decode((directory / "meta").read_bytes()), (directory / "data").stat().st_size
        fsync_path(directory / "data")
        write_again(HOST, directory / "meta", msgspec.structs.replace(meta, durable=min(size, meta.durable)))
        return f"goes on at byte {size}"

    def _copy(self, finding: Finding) -> str:
        """Write the row copy again; then remove a torn old copy, which nothing can read."""
        if not is_plain(self._state / finding.path):
            self._set_aside(finding)
        try:
            with closing(open_read_only(self._state / FILE)) as db:
                save(self._state, RowCopy(time.time_ns(), rows_of(db, self._tables.kept)))
        except sqlite3.Error:
            return self._set_aside(finding)
        if finding.path != COPY and (self._state / finding.path).exists():
            self._remove(finding)
        return "written anew from the database"

    def _rebuild(self, finding: Finding) -> str:
        done = rebuild(self._state, self._tables, f"{finding.path}: {finding.what}")
        copied = f"the copy of {done.copied}" if done.copied else "no copy, as there was none"
        kept = f", the old one is {done.aside}" if done.aside else ""
        return f"rebuilt from {copied}, and from files: {done.rows} and {done.found} rows{kept}"

    def _adopt(self, finding: Finding) -> str:
        with closing(sqlite3.connect(self._state / FILE, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=FULL")
            migrate(db)
            with transaction(db):
                adopt(db, self._state)
        return "is a snapshot again; `imgfs snapshot ls` shows it"


def place_of(finding: Finding) -> str:
    """The place to check to get this finding again."""
    return os.path.dirname(finding.path) if finding.mend == "index" else finding.path
