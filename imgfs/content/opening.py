"""A state directory for one program: made if need be, locked, swept, its database open; or looked at and left alone."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from imgfs.database.database import Database
from imgfs.database.files import ASIDE, COPY, COPY_OLD, FILE
from imgfs.database.frozen import FrozenDatabase
from imgfs.disk.durable import TEMPORARY, make_directory, open_directory
from imgfs.errors import NotFound, StorageFailed, from_os
from imgfs.lock import locked
from imgfs.state import is_read_only

_PURPOSE = "as a library"


@contextmanager
def opened(state: Path, schemas: Sequence[str], *, read_only: bool) -> Generator[Database]:
    """The database of `state` while the block runs; blocks. Raises Busy while another process has the directory.

    With `read_only` nothing is locked or changed: the database is a copy of this moment, also beside a daemon at work.
    Raises NotFound where there is nothing to read; NoSpace; StorageFailed, also where the database is lost or damaged:
    it holds more than one library's rows, so it is rebuilt by who knows them all (rescue/).
    """
    if read_only:
        if not state.is_dir():
            raise NotFound(f"{state}: is no directory; open it without read_only to make one")
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
    """Why the database of a directory counts as lost, where it does: there is none, but there was one."""
    if size_of(state / FILE) > 0 or not any(_traces(state)):
        return None
    return f"{state / FILE}: is {'empty' if (state / FILE).exists() else 'gone'}"


def size_of(path: Path) -> int:
    """The size of a file in bytes, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _database(state: Path, schemas: Sequence[str], *, is_frozen: bool) -> Database:
    if reason := lost(state):
        raise StorageFailed(f"{reason}, but there was one; `imgfs repair --state {state}` or `imgfs mount` rebuilds it")
    return FrozenDatabase(state / FILE, schemas) if is_frozen else Database(state / FILE, schemas)


def _traces(state: Path) -> Iterator[Path]:
    """What only a state directory has that had a database once."""
    yield from (path for path in (state / COPY, state / COPY_OLD) if path.exists())
    yield from state.glob(f"{ASIDE}*")
    yield from (path for path in state.glob("snapshots/*/upper") if not path.parent.name.startswith(TEMPORARY))
