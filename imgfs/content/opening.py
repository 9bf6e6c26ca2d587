"""Open a state directory for a library program: create, lock and clean it and open its database; or read-only."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from imgfs.database.database import Database
from imgfs.database.format import ASIDE, COPY, COPY_OLD, FILE
from imgfs.database.frozen import FrozenDatabase
from imgfs.disk.durable import TEMPORARY, make_directory, open_directory
from imgfs.errors import NotFound, StorageFailed, from_os
from imgfs.lock import locked
from imgfs.state import is_read_only

_PURPOSE = "as a library"


@contextmanager
def opened(state: Path, schemas: Sequence[str], *, read_only: bool) -> Generator[Database]:
    """Yield the database of `state`. Blocks. Raises Busy if another process holds the directory's lock.

    With `read_only`, nothing is locked or changed: the database is a copy of this moment, also while a daemon is
    running. Raises NotFound if the directory does not exist; NoSpace; StorageFailed, also if the database is lost or
    damaged. The library does not rebuild it, because the database holds rows of other packages too; rescue/ rebuilds
    it.
    """
    if read_only:
        if not state.is_dir():
            raise NotFound(f"{state}: is not a directory; open it without read_only to create it")
        with closing(_database(state, schemas, is_frozen=True)) as database:
            yield database
        return
    with _telling(state):
        make_directory(state)
    with locked(state, _PURPOSE):
        with _telling(state):
            is_frozen = not open_directory(state) or is_read_only(state)
        with closing(_database(state, schemas, is_frozen=is_frozen)) as database:
            yield database


@contextmanager
def _telling(state: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise from_os(error, os.fsdecode(error.filename or state)) from None


def lost(state: Path) -> str | None:
    """Return why the database counts as lost: it is missing or empty, but the directory had one.

    None if it is not lost.
    """
    if size_of(state / FILE) > 0 or not any(_traces(state)):
        return None
    return f"{state / FILE}: is {'empty' if (state / FILE).exists() else 'gone'}"


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _database(state: Path, schemas: Sequence[str], *, is_frozen: bool) -> Database:
    if reason := lost(state):
        raise StorageFailed(f"{reason}, but there was one; `imgfs repair --state {state}` or `imgfs mount` rebuilds it")
    return FrozenDatabase(state / FILE, schemas) if is_frozen else Database(state / FILE, schemas)


def _traces(state: Path) -> Iterator[Path]:
    """Yield the files that prove that this state directory had a database."""
    yield from (path for path in (state / COPY, state / COPY_OLD) if path.exists())
    yield from state.glob(f"{ASIDE}*")
    yield from (path for path in state.glob("snapshots/*/upper") if not path.parent.name.startswith(TEMPORARY))
