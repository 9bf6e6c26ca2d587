"""The format of a database file: a foreign file is refused and not changed, an older imgfs database is upgraded."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.database.database import Database
from imgfs.database.format import Foreign
from imgfs.database.frozen import FrozenDatabase
from tests.database.facts import SCHEMA, select


def made_by_others(path: Path, *statements: str) -> bytes:
    """Create a database that this imgfs did not make, and return its bytes."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return path.read_bytes()


@pytest.mark.parametrize("form", [Database, FrozenDatabase])
@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (("CREATE TABLE songs (title TEXT)",), "another program; move it aside"),
        (("CREATE TABLE facts (fact TEXT)", "PRAGMA application_id = 7"), "another program; move it aside"),
        (
            (SCHEMA, "PRAGMA application_id = 1768777574", "PRAGMA user_version = 99"),
            "format 99, this imgfs knows formats up to 1",
        ),
    ],
)
def test_a_foreign_database_is_refused_and_not_changed(
    tmp_path: Path, form: type[Database], statements: tuple[str, ...], words: str
) -> None:
    path = tmp_path / "imgfs.db"
    content = made_by_others(path, *statements)
    with pytest.raises(Foreign, match=words):
        form(path, [SCHEMA])
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["imgfs.db"]


def test_a_database_without_a_format_number_is_upgraded(tmp_path: Path) -> None:
    made_by_others(tmp_path / "imgfs.db", SCHEMA, "INSERT INTO facts VALUES ('old')")
    for _ in range(2):
        opened = Database(tmp_path / "imgfs.db", [SCHEMA])
        assert opened.read_now(select) == ["old"]
        assert opened.read_now(lambda db: db.execute("PRAGMA user_version").fetchone()[0]) == 1
        opened.close()
