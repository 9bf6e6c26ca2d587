"""Rows that no file can rebuild: how imgfs reads them, checks each one, and restores them. Rooms declare their own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

import msgspec

from imgfs.database.database import decoded
from imgfs.database.failures import check, damage
from imgfs.database.migrations import columns
from imgfs.errors import ImgfsError

Row = tuple[Any, ...]
"""The values of one row: int, str, bytes and None."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How to read and restore the rows of one table that no file can rebuild; the owner of the table declares it.

    `tables` are those that `select` reads; `insert` fills the first of them. `row` is the type of one row. `sound`
    receives the columns of a row and raises ImgfsError or ValueError if the owner could not read that row.
    """

    row: Any
    tables: tuple[str, ...]
    select: str
    insert: str
    sound: Callable[..., object]

    @property
    def name(self) -> str:
        """The name of the rows in the copy."""
        return self.tables[0]

    def dump(self, db: sqlite3.Connection) -> list[Row]:
        """All rows, in an order of their own; none if a table is missing, as a library creates only its own tables.

        Raises sqlite3.Error, also for a damaged table or a row that cannot be read.
        """
        if not columns(db).keys() >= set(self.tables):
            return []
        rows, wrong = self.sift(db)
        if wrong:
            raise damage(wrong[0])
        return rows

    def sift(self, db: sqlite3.Connection) -> tuple[list[Row], list[str]]:
        """The readable rows, and what is wrong with each other row. Raises sqlite3.Error for a damaged table."""
        for table in self.tables:
            check(db, table)
        return self._sift(db)

    def check_rows(self, db: sqlite3.Connection) -> None:
        """Raise sqlite3.Error if a row cannot be read. SQLite must have checked the tables already."""
        _, wrong = self._sift(db)
        if wrong:
            raise damage(wrong[0])

    def _sift(self, db: sqlite3.Connection) -> tuple[list[Row], list[str]]:
        found = self._fetch(db)
        if self._are_sound(found):
            return found, []
        rows, wrong = list[Row](), list[str]()
        for row in found:
            if (reason := self._reason(row)) is None:
                rows.append(row)
            else:
                wrong.append(reason)
        return rows, wrong

    def leave_out(self, db: sqlite3.Connection) -> list[str]:
        """Delete unreadable rows, if `select` reads only one table; returns what was wrong. Raises sqlite3.Error."""
        rows, wrong = self.sift(db)
        if wrong and self.tables == (self.name,):
            db.execute(f"DELETE FROM {self.name}")
            self.restore(db, rows)
        return wrong

    def _fetch(self, db: sqlite3.Connection) -> list[Row]:
        """All rows, decoded by SQLite, which takes a third of the time, unless a text is no UTF-8."""
        try:
            db.text_factory = str
            with suppress(sqlite3.OperationalError):
                return db.execute(self.select).fetchall()
        finally:
            db.text_factory = decoded
        try:
            return db.execute(self.select).fetchall()
        except sqlite3.OperationalError as error:
            raise damage(str(error)) if error.sqlite_errorcode == sqlite3.SQLITE_ERROR else error from None

    def _are_sound(self, rows: list[Row]) -> bool:
        """Whether every row is readable; one conversion of all rows is faster than one for each."""
        try:
            for row in msgspec.convert(rows, GenericAlias(list, (self.row,))):
                self.sound(*row)
        except (ImgfsError, ValueError, msgspec.ValidationError):
            return False
        return True

    def _reason(self, row: Row) -> str | None:
        try:
            self.sound(*msgspec.convert(row, self.row))
        except (ImgfsError, ValueError, msgspec.ValidationError) as error:
            return f"a row of {self.name} cannot be read: {error}"
        return None

    def restore(self, db: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Insert rows; a row whose key exists already is skipped."""
        db.executemany(self.insert, rows)
