"""The SQLite file of the state directory: one writer, readers that never wait for it, every commit durable.

Rooms own their tables: each declares a SCHEMA of `CREATE ... IF NOT EXISTS` statements and hands functions over a
connection to `read` and `write`. What a table means, and what can be rebuilt from files, is said where it is declared:
what cannot be, a room declares as KEPT, and rescue/ keeps a copy of it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes

import msgspec
import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import ImgfsError, NoSpace, ReadOnly, StorageFailed, begun_read_only, from_os
from imgfs.state import is_read_only

T = TypeVar("T")

_SHARED = "/dev/shm"
"""Memory as files; it is there also where no disk can be written."""

RESERVE = 1 << 20
"""Bytes on disk beside the database for the start and for what makes room: both have to work when the disk is full."""

FILE = "imgfs.db"
"""The database's name in the state directory."""
COPY = "imgfs.copy"
COPY_OLD = f"{COPY}.old"
"""Those of the copy that rescue/ keeps, and of the one before."""
ASIDE = f"{FILE}.damaged-"
"""How the names begin of databases that were set aside; the user removes them."""

FORMAT = 1
"""Which tables there are and what their rows mean, in the file's `user_version`. A new one is for changes that an older
imgfs would not understand; it has to say how files of the older formats are taken over."""
_OWN = 0x696D6766
"""`imgf`: the file's `application_id`, by which it is told from other programs' databases."""

_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""Primary codes of what SQLite says where the disk takes no change; it does not pass the errno on."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

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
        """All rows, in an order of their own. Raises sqlite3.Error, also where a table or a row does not check out."""
        rows, wrong = self.sift(db)
        if wrong:
            raise _damage(wrong[0])
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
            raise _damage(wrong[0])

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
            db.text_factory = _text
        try:
            return db.execute(self.select).fetchall()
        except sqlite3.OperationalError as error:
            raise _damage(str(error)) if error.sqlite_errorcode == sqlite3.SQLITE_ERROR else error from None

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


def _text(data: bytes) -> str:
    """Text as SQLite has it: what is none harms only who compares it, and not everybody who reads the table."""
    return data.decode(errors="surrogateescape")


class Damaged(StorageFailed):
    """The file is no database, or does not check out."""


class Foreign(StorageFailed):
    """The file is a whole database, but another program's or a later imgfs's: it is neither changed nor rebuilt."""


class Database:
    """An open database. Only one process may change a state directory; its lock (lock.py) sees to that."""

    is_frozen = False
    """Whether every change is refused."""

    def __init__(self, path: Path, schemas: Sequence[str]) -> None:
        """Open or create `path`; raises Damaged where it is no whole database, Foreign where it is not one of this
        imgfs, StorageFailed where it will not open.
        """
        self._path = path
        self.version = 0
        """How many changes there were since it was opened."""
        self._changed = trio.Event()
        self._reserve = Reserve(path)
        self._reserve.release()
        self._writing = trio.Lock()
        self._reading = trio.Lock()
        self._tables = _declared(schemas)
        try:
            self._writer = self._connect()
            try:
                check(self._writer)
                check_columns(self._writer, schemas)
                for schema in schemas:
                    self._writer.executescript(schema)
                _mark_origin(self._writer)
                self._reader = self._connect()
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as error:
            raise self._explain(error) from None
        self._reserve.fill()

    def close(self) -> None:
        """Close both connections; everything committed is on disk already."""
        self._reader.close()
        self._writer.close()

    async def write(self, change: Callable[[sqlite3.Connection], T], *, frees: bool = False) -> T:
        """Run `change` in one transaction: on return it is durable, on an exception nothing of it happened.

        What `frees` room may use up the reserve, so it works on a full disk. A cancelled caller still waits for a
        transaction that has begun. Raises NoSpace, ReadOnly or StorageFailed.
        """
        async with self._writing:
            result = await run_disk(self._transact_in_reserve if frees else self._transact, change)
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()
        return result

    async def wait_changed(self, version: int) -> None:
        """Wait until `version` is another one; however many wait, all hear of it."""
        while self.version == version:
            await self._changed.wait()

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on a snapshot that a writer never blocks. Raises StorageFailed."""
        async with self._reading:
            return await run_disk(self._query, query)

    def read_now(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As `read`, in this thread: for the start, before anything is served."""
        return self._query(query)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            check_origin(connection, self._path, self._tables)  # first: the next line changes the file
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.text_factory = _text
        except BaseException:
            connection.close()
            raise
        return connection

    def _transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = change(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            return result
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _transact_in_reserve(self, change: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._transact(change)
        except NoSpace:
            self._reserve.release()
            return self._transact(change)
        finally:
            self._reserve.fill()

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return query(self._reader)
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _explain(self, error: sqlite3.Error) -> NoSpace | ReadOnly | StorageFailed:
        code = getattr(error, "sqlite_errorcode", -1)
        if is_full(error):
            return NoSpace(f"{self._path}: the disk is full; make room and try again")
        if is_damage(error):
            return Damaged(f"{self._path}: {error}; mount again or run `imgfs repair`: it is rebuilt, or move it aside")
        if code & 0xFF in _UNWRITABLE and is_read_only(self._path.parent):
            return ReadOnly(f"{self._path}: lies on a read-only filesystem; remount it writable")
        return StorageFailed(f"{self._path}: {error}; check the disk of the state directory")


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk had no room."""
    return getattr(error, "sqlite_errorcode", None) in _FULL


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it tells of a file that is no whole database, and not of a disk or of somebody else's lock."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE


def check(db: sqlite3.Connection, table: str = "", *, deep: bool = False) -> None:
    """Raise sqlite3.DatabaseError unless the table, or all of the file, is whole; `deep` compares indexes as well."""
    word = "integrity_check" if deep else "quick_check"
    found = db.execute(f"PRAGMA {word}({table or 1})").fetchone()[0]
    if found != "ok":
        raise _damage(" ".join(found.split()))


def _damage(reason: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def check_columns(db: sqlite3.Connection, schemas: Sequence[str]) -> None:
    """Raise sqlite3.DatabaseError where a table of `schemas` that is there has not all of its columns."""
    found = columns(db)
    for table, declared in _declared(schemas).items():
        if missing := sorted(declared - found.get(table, declared)):
            raise _damage(f"table {table} has no column {', '.join(missing)}")


def columns(db: sqlite3.Connection) -> dict[str, set[str]]:
    """The columns of each table. Raises sqlite3.Error."""
    query = (
        "SELECT one.name, it.name FROM sqlite_schema one JOIN pragma_table_info(one.name) it WHERE one.type = 'table'"
    )
    found: dict[str, set[str]] = {}
    for table, column in db.execute(query):
        found.setdefault(table, set()).add(column)
    return found


def check_origin(db: sqlite3.Connection, path: Path, tables: Collection[str]) -> None:
    """Raise Foreign unless this imgfs made the database, or an earlier one did. Raises sqlite3.Error.

    Those before FORMAT did not mark theirs: such a file has at least one of `tables`, or none at all.
    """
    program, form = (db.execute(f"PRAGMA {word}").fetchone()[0] for word in ("application_id", "user_version"))
    if program == _OWN and form > FORMAT:
        raise Foreign(
            f"{path}: is of format {form}, this imgfs knows {FORMAT}; a later imgfs has written it: use that, or "
            "move the file aside, and it is made anew from its copy and from files"
        )
    found = set(columns(db))
    if program not in (0, _OWN) or (program == 0 and found and found.isdisjoint(tables)):
        raise Foreign(f"{path}: is the database of another program; move it aside, or name another directory")


def _declared(schemas: Sequence[str]) -> dict[str, set[str]]:
    """The tables that `schemas` make, and their columns."""
    with closing(sqlite3.connect(":memory:")) as db:
        for schema in schemas:
            db.executescript(schema)
        return columns(db)


def _mark_origin(db: sqlite3.Connection) -> None:
    """Write down who made the database, and its format."""
    found = [db.execute(f"PRAGMA {word}").fetchone()[0] for word in ("application_id", "user_version")]
    if found != [_OWN, FORMAT]:
        db.execute(f"PRAGMA application_id = {_OWN}")
        db.execute(f"PRAGMA user_version = {FORMAT}")


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, beside a daemon or without one. The caller closes it. Raises sqlite3.Error."""
    return sqlite3.connect(f"file:{quote_from_bytes(bytes(path))}?mode=ro", uri=True, timeout=10)


class FrozenDatabase(Database):
    """The database of a state directory that cannot or shall not be changed: a copy in memory, never written.

    It is of the moment when it was opened, also while somebody else is at work. Where there is no file it is empty.
    """

    is_frozen = True

    def __init__(self, path: Path, schemas: Sequence[str]) -> None:
        """Copy `path`. Raises Damaged and Foreign as Database, StorageFailed where it cannot be read."""
        self._path = path
        self.version = 0
        self._changed = trio.Event()
        self._reading = trio.Lock()
        self._reader = self._writer = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            _copy(path, self._reader)
            check_origin(self._reader, path, _declared(schemas))
            check(self._reader)
            check_columns(self._reader, schemas)
            for schema in schemas:
                self._reader.executescript(schema)
        except sqlite3.Error as error:
            hint = "where its filesystem is read-only, remount it, so that it can be rebuilt; else run `imgfs repair`"
            raise Damaged(f"{path}: {error}; {hint}") from None
        except OSError as error:
            raise from_os(error, str(path)) from None

    async def write(self, change: Callable[[sqlite3.Connection], T], *, frees: bool = False) -> T:
        """Raises ReadOnly."""
        raise begun_read_only(str(self._path))


def _copy(path: Path, target: sqlite3.Connection) -> None:
    """Copy a database into `target`: through SQLite if somebody has it open, so that it is of one moment."""
    if path.with_name(f"{path.name}-shm").exists():
        try:
            with closing(read_only(path)) as source:
                source.backup(target)
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _UNWRITABLE:
                raise
    _copy_files(path, target)


def _copy_files(path: Path, target: sqlite3.Connection) -> None:
    """Copy a database that nobody writes to, and its WAL file, if there is one, into `target`.

    SQLite itself cannot open a file in WAL mode where it can make no other beside it, and what a crash left in the WAL
    counts too.
    """
    with tempfile.TemporaryDirectory(dir=_SHARED if os.access(_SHARED, os.W_OK) else None) as directory:
        copied = Path(directory) / path.name
        for name in (path.name, f"{path.name}-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(name), copied.with_name(name))
        with closing(sqlite3.connect(copied)) as source:
            source.backup(target)


class Reserve:
    """A file beside a database that is in the way of others until its room is needed."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}.reserve")

    def release(self) -> None:
        """Give the room up."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def fill(self) -> None:
        """Take the room unless it is held; where there is none, the next one to come here tries again."""
        if self._path.exists():
            return
        try:
            with self._path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError:
            self.release()
