"""Rows that no file can rebuild: how they are read, checked one by one, and put back. Whose they are, rooms say."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

import msgspec

from imgfs.database.connections import decoded
from imgfs.database.damage import check, damage
from imgfs.database.schema import columns
from imgfs.errors import ImgfsError

Row = tuple[Any, ...]
"""What a table holds: int, str, bytes and None."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows that no file can rebuild. Their room says here how they are read, and how they are put into a table.

    `tables` are those that `select` reads, the one that `insert` fills first; `row` is the type of one row. `sound`
    gets the columns of a row and raises ImgfsError or ValueError where the room could not read it.
    """

    row: Any
    tables: tuple[str, ...]
    select: str
    insert: str
    sound: Callable[..., object]

    @property
    def name(self) -> str:
        """What the copy calls them."""
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
        """The rows that can be read, and what is wrong with each of the others. Raises sqlite3.Error for the tables."""
        for table in self.tables:
            check(db, table)
        return self._sift(db)

    def check_rows(self, db: sqlite3.Connection) -> None:
        """Raise sqlite3.Error where a row cannot be read, of tables that SQLite has checked already."""
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
        """Take what cannot be read out of a table that `select` reads alone; what was wrong. Raises sqlite3.Error."""
        rows, wrong = self.sift(db)
        if wrong and self.tables == (self.name,):
            db.execute(f"DELETE FROM {self.name}")
            self.restore(db, rows)
        return wrong

    def _fetch(self, db: sqlite3.Connection) -> list[Row]:
        """All rows, by SQLite's own decoding unless some text is none: it takes a third of the time."""
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
        """Whether all of them are: that is told faster than of one after the other."""
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
        """Put rows into a table that has none of them."""
        db.executemany(self.insert, rows)
