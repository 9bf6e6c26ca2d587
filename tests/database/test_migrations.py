"""A database of every released format is upgraded without losing a row, even after a kill or damage, or from a copy."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.assembly.tables import TABLES
from imgfs.check.records import check_copy, check_database
from imgfs.database import migrations
from imgfs.database.database import Database
from imgfs.database.format import Foreign
from imgfs.database.frozen import FrozenDatabase
from imgfs.database.migrations import COPIED, STEPS, columns, copied_columns, current_format, empty_of_format
from imgfs.rescue.rebuild import Tables, open_database, open_frozen
from imgfs.rescue.row_copy import RowCopy, encode, read, save
from tests.database.released import RELEASES, Released, unpack
from tests.support.programs import program

COPIED_RELEASES = [release for release in RELEASES if release not in ("0-first", "0-snapshots")]


def facts(db: sqlite3.Connection, tables: dict[str, set[str]]) -> dict[str, list[tuple[object, ...]]]:
    """Return SQLite's description of each column, by table."""
    return {table: sorted(row[1:] for row in db.execute(f"PRAGMA table_info({table})")) for table in tables}


def format_in(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


@pytest.fixture(params=RELEASES)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Released:
    return unpack(request.param, tmp_path)


def test_every_released_format_is_opened_with_all_its_rows(released: Released, tmp_path: Path) -> None:
    database, rebuilt = open_database(released.state, TABLES)
    database.close()
    assert rebuilt is None
    assert format_in(released.state / "imgfs.db") == current_format()
    assert released.rows() == released.expected()
    fresh = Database(tmp_path / "fresh.db", TABLES.schemas)
    with closing(sqlite3.connect(released.state / "imgfs.db")) as db:
        assert facts(db, columns(db)) == fresh.read_now(lambda fresh: facts(fresh, columns(db)))
    fresh.close()


def test_the_catalog_of_the_first_release_keeps_sizes(tmp_path: Path) -> None:
    released = unpack("0-first", tmp_path)
    with closing(sqlite3.connect(released.state / "imgfs.db")) as db:
        before = db.execute("SELECT digest, size, media_type FROM descriptors ORDER BY digest").fetchall()
    Database(released.state / "imgfs.db", TABLES.schemas).close()
    with closing(sqlite3.connect(released.state / "imgfs.db")) as db:
        assert db.execute("SELECT digest, size, media_type FROM descriptors ORDER BY digest").fetchall() == before
        assert db.execute("SELECT digest, size, media_type FROM sources ORDER BY digest").fetchall() == before
    assert before


def test_a_read_only_state_directory_is_migrated_in_memory(released: Released) -> None:
    before = (released.state / "imgfs.db").read_bytes()
    database = open_frozen(released.state, TABLES)
    assert database.read_now(lambda db: [row[0] for row in db.execute("SELECT name FROM names ORDER BY name")]) == (
        sorted(released.names)
    )
    database.close()
    assert (released.state / "imgfs.db").read_bytes() == before


def test_check_finds_no_fault_with_an_older_database(released: Released) -> None:
    before = (released.state / "imgfs.db").read_bytes()
    assert check_database(released.state, TABLES.kept, deep=True) is None
    assert check_copy(released.state / "imgfs.copy", "imgfs.copy", TABLES.kept) is None
    assert (released.state / "imgfs.db").read_bytes() == before


def damage(path: Path, table: str) -> None:
    """Overwrite the root page of `table`."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=DELETE")
        page = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def test_intact_tables_of_a_damaged_older_database_are_salvaged(released: Released) -> None:
    damage(released.state / "imgfs.db", "diff_ids")
    shutil.rmtree(released.state / "imgfs.copy", ignore_errors=True)
    database, rebuilt = open_database(released.state, TABLES)
    database.close()
    assert rebuilt is not None
    assert released.rows() == released.expected()


@pytest.mark.parametrize("release", COPIED_RELEASES)
def test_a_damaged_table_of_an_older_database_comes_from_the_older_copy(release: str, tmp_path: Path) -> None:
    released = unpack(release, tmp_path)
    damage(released.state / "imgfs.db", "names")
    database, _ = open_database(released.state, TABLES)
    database.close()
    assert released.rows() == released.expected()


@pytest.mark.parametrize("release", COPIED_RELEASES)
def test_a_lost_database_is_rebuilt_from_the_copy_of_its_release(release: str, tmp_path: Path) -> None:
    released = unpack(release, tmp_path)
    (released.state / "imgfs.db").unlink()
    database, rebuilt = open_database(released.state, TABLES)
    database.close()
    assert rebuilt is not None
    assert released.rows() == released.expected()


def test_the_tables_of_the_current_format_match_their_frozen_description() -> None:
    """If this fails, the change altered a released table: append a step to STEPS and an entry to COPIED."""
    with closing(empty_of_format(current_format())) as db, closing(sqlite3.connect(":memory:")) as declared:
        for schema in TABLES.schemas:
            declared.executescript(schema)
        assert {one.name for one in TABLES.kept} == set(columns(db))
        described = copied_columns(db, current_format())
        for one in TABLES.kept:
            assert facts(db, {one.name: set()}) == facts(declared, {one.name: set()})
            names, row = described[one.name]
            assert row == one.row
            found = declared.execute(one.select)
            assert tuple(column[0] for column in found.description) == names


# Two formats of later releases: the first adds a column, the second renames a column.


def _begin_next(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE names ADD COLUMN note TEXT NOT NULL DEFAULT 'none'")


def _finish_next(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE names RENAME COLUMN digest TO target")
    db.execute("UPDATE names SET target = target || '!'")


NEXT_STEPS = (*STEPS, _begin_next, _finish_next)


def next_tables() -> Tables:
    """Return the current tables with the `names` table of two formats later."""
    schemas = [TABLES.schemas[0].replace("digest TEXT NOT NULL,", "target TEXT NOT NULL, note TEXT NOT NULL,")]
    names = TABLES.kept[0]
    later = type(names)(
        tuple[str, str, int, str],
        ("names",),
        "SELECT name, target, updated, note FROM names ORDER BY name",
        "INSERT OR IGNORE INTO names (name, target, updated, note) VALUES (?, ?, ?, ?)",
        lambda *row: row,
    )
    return Tables((*schemas, *TABLES.schemas[1:]), (later, *TABLES.kept[1:]), TABLES.finders[:1])


@pytest.fixture
def a_later_release(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """Make imgfs behave as a later release, and return its tables."""
    monkeypatch.setattr(migrations, "STEPS", NEXT_STEPS)
    return next_tables()


def noted(state: Path) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(state / "imgfs.db")) as db:
        return db.execute("SELECT name, target, note FROM names ORDER BY name").fetchall()


def test_a_later_release_upgrades_every_format(released: Released, a_later_release: Tables) -> None:
    database, rebuilt = open_database(released.state, a_later_release)
    database.close()
    assert rebuilt is None
    assert noted(released.state) == [(name, f"{digest}!", "none") for name, digest in sorted(released.names.items())]


def lose(state: Path) -> None:
    (state / "imgfs.db").unlink()


def break_names(state: Path) -> None:
    damage(state / "imgfs.db", "names")


def break_another_table(state: Path) -> None:
    damage(state / "imgfs.db", "diff_ids")
    (state / "imgfs.copy").unlink()


@pytest.mark.parametrize("harm", [lose, break_names, break_another_table])
@pytest.mark.parametrize("release", COPIED_RELEASES)
def test_a_later_release_rebuilds_from_an_older_copy_and_an_older_database(
    release: str, tmp_path: Path, a_later_release: Tables, harm: Callable[[Path], None]
) -> None:
    released = unpack(release, tmp_path)
    harm(released.state)
    database, rebuilt = open_database(released.state, a_later_release)
    database.close()
    assert rebuilt is not None
    assert format_in(released.state / "imgfs.db") == len(NEXT_STEPS)
    assert noted(released.state) == [(name, f"{digest}!", "none") for name, digest in sorted(released.names.items())]


def test_a_database_of_a_later_format_is_refused_and_not_changed(tmp_path: Path) -> None:
    released = unpack("1", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "STEPS", NEXT_STEPS)
        database, _ = open_database(released.state, next_tables())
        database.close()
        save(released.state, RowCopy(1, {"names": [("a", "b", 1, "c")]}))
    files = {path.name: path.read_bytes() for path in released.state.iterdir() if path.is_file()}
    for opening in (open_database, open_frozen):
        with pytest.raises(
            Foreign, match="has format 3, this imgfs knows formats up to 1; a later imgfs has written it"
        ):
            opening(released.state, TABLES)
    finding = check_database(released.state, TABLES.kept, deep=False)
    assert finding is not None
    assert finding.mend == "none"
    copy = check_copy(released.state / "imgfs.copy", "imgfs.copy", TABLES.kept)
    assert copy is not None
    assert copy.mend == "none"
    assert {name: (released.state / name).read_bytes() for name in files if "reserve" not in name} == {
        name: data for name, data in files.items() if "reserve" not in name
    }


def test_a_lost_database_is_not_rebuilt_without_the_rows_of_a_later_copy(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "STEPS", NEXT_STEPS)
        data = encode(RowCopy(1, {"names": [("a", "b", 1, "c")]}))
    (tmp_path / "imgfs.copy").write_bytes(data)
    for step in (lambda: open_database(tmp_path, TABLES), lambda: save(tmp_path, RowCopy(2, {}))):
        with pytest.raises(Foreign, match=r"imgfs\.copy: has format 3"):
            step()
    assert (tmp_path / "imgfs.copy").read_bytes() == data
    assert os.listdir(tmp_path) == ["imgfs.copy"]


def test_a_copy_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "STEPS", ())
        (tmp_path / "imgfs.copy").write_bytes(encode(RowCopy(1, {})))
    with pytest.raises(Exception, match="has format 0, which no imgfs has written"):
        read(tmp_path / "imgfs.copy", TABLES.kept)


def test_a_step_that_fails_changes_nothing(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM names")
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(migrations, "STEPS", (*STEPS, failing))
    with pytest.raises(Exception, match="disk I/O error"):
        Database(released.state / "imgfs.db", TABLES.schemas)
    assert format_in(released.state / "imgfs.db") == len(STEPS)
    monkeypatch.undo()
    Database(released.state / "imgfs.db", TABLES.schemas).close()
    assert released.rows() == released.expected()


def test_a_library_database_with_only_its_own_tables_is_migrated(tmp_path: Path) -> None:
    labels = next(schema for schema in TABLES.schemas if "content_labels" in schema)
    with closing(sqlite3.connect(tmp_path / "imgfs.db")) as db:
        db.executescript(labels)
    for form in (FrozenDatabase, Database):
        form(tmp_path / "imgfs.db", [labels]).close()
    assert format_in(tmp_path / "imgfs.db") == current_format()


UPGRADE = """
import sys
from pathlib import Path
from imgfs.database import migrations
from tests.database.test_migrations import NEXT_STEPS, next_tables
from imgfs.database.database import Database
migrations.STEPS = NEXT_STEPS
Database(Path(sys.argv[1]), next_tables().schemas).close()
"""


@pytest.mark.parametrize(
    ("release", "call", "every"), [("0-first", "pwrite64", 5), ("0-snapshots", "fdatasync", 1), ("1", "fdatasync", 1)]
)
def test_after_a_kill_at_any_call_the_database_is_before_or_after_a_step(
    release: str, tmp_path: Path, call: str, every: int
) -> None:
    """The upgrade is killed at each call that writes; the next start finishes the steps."""
    formats: set[int] = set()
    for number in range(1, 200, every):
        released = unpack(release, tmp_path / f"{number}")
        path = released.state / "imgfs.db"
        strike = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        upgrade = [sys.executable, "-c", UPGRADE, str(path)]
        done = subprocess.run(
            [program("strace"), "-f", "-qq", "-o", os.devnull, *strike, *upgrade], check=False, timeout=60
        )
        if done.returncode == 0:
            break
        assert -done.returncode in (signal.SIGKILL,) or done.returncode == 128 + signal.SIGKILL
        with closing(sqlite3.connect(path)) as db:
            form = db.execute("PRAGMA user_version").fetchone()[0]
            formats.add(form)
            wanted = "target" if form == len(NEXT_STEPS) else "digest"
            assert wanted in columns(db)["names"]
            assert ("note" in columns(db)["names"]) == (form > len(STEPS))
            names = dict(db.execute(f"SELECT name, {wanted} FROM names").fetchall())
        assert {name: digest.rstrip("!") for name, digest in names.items()} == released.names
        subprocess.run(upgrade, check=True, timeout=60)
        assert format_in(path) == len(NEXT_STEPS)
        assert noted(released.state) == [
            (name, f"{digest}!", "none") for name, digest in sorted(released.names.items())
        ]
    else:
        pytest.fail("the upgrade never ends without a kill")
    first = 1 if release == "1" else 0
    if every == 1:
        assert formats >= set(range(first, len(NEXT_STEPS)))
    assert min(formats) == first
    assert len(formats) > 1


def test_every_format_has_a_frozen_description() -> None:
    assert set(COPIED) == set(range(1, current_format() + 1))
