"""Labels of blobs: durable, limited in size, removed with their blob."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio

from imgfs.content.labels import KEY_BYTES_MAX, SCHEMA, SIZE_MAX, Labels
from imgfs.content.store import ContentStore
from imgfs.database.database import Database
from imgfs.errors import Invalid, NoSpace, NotFound, NotPermitted
from imgfs.oci.digest import Digest

DATA = b"labelled"
DIGEST = Digest.of(DATA)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "db", [SCHEMA])
    yield opened
    opened.close()


@pytest.fixture
async def store(tmp_path: Path, database: Database) -> ContentStore:
    store = ContentStore(tmp_path, Labels(database))
    await store.add(DIGEST, DATA)
    return store


async def test_labels_survive_a_restart_sorted(tmp_path: Path, database: Database, store: ContentStore) -> None:
    await store.set_label(DIGEST, "b", b"\0binary")
    await store.set_label(DIGEST, "a", b"old")
    await store.set_label(DIGEST, "a", b"")
    for opened in (store, ContentStore(tmp_path, Labels(database))):
        assert list(opened.labels(DIGEST).items()) == [("a", b""), ("b", b"\0binary")]
    await store.remove_label(DIGEST, "a")
    assert Labels(database).of(DIGEST) == {"b": b"\0binary"}


async def test_labels_go_with_their_blob(database: Database, store: ContentStore) -> None:
    await store.set_label(DIGEST, "a", b"1")
    await store.delete(DIGEST)
    assert store.labels(DIGEST) == Labels(database).of(DIGEST) == {}
    await store.add(DIGEST, DATA)
    assert store.labels(DIGEST) == {}


async def test_labels_that_a_crash_left_are_swept(tmp_path: Path, database: Database, store: ContentStore) -> None:
    other = Digest.of(b"other")
    await store.add(other, b"other")
    for digest in (DIGEST, other):
        await store.set_label(digest, "a", b"1")
    store.path(DIGEST).unlink()
    again = ContentStore(tmp_path, Labels(database))
    await again.sweep_labels()
    assert Labels(database).of(DIGEST) == {}
    assert Labels(database).of(other) == {"a": b"1"}


async def test_a_missing_blob_has_no_labels(store: ContentStore) -> None:
    await store.delete(DIGEST)
    with pytest.raises(NotFound):
        await store.set_label(DIGEST, "a", b"1")
    with pytest.raises(NotFound, match="no such label"):
        await store.remove_label(DIGEST, "a")


async def test_a_blob_removed_meanwhile_is_not_labelled(database: Database) -> None:
    labels = Labels(database)
    with pytest.raises(NotFound, match="removed meanwhile"):
        await labels.put("subject", "a", b"1", lambda _: False)
    assert labels.of("subject") == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", b""),
        ("a\n", b""),
        ("k" * (KEY_BYTES_MAX + 1), b""),
        ("ü" * KEY_BYTES_MAX, b""),
        ("k", b"v" * SIZE_MAX),
    ],
)
async def test_a_label_over_the_limits_is_invalid(store: ContentStore, key: str, value: bytes) -> None:
    with pytest.raises(Invalid, match="label"):
        await store.set_label(DIGEST, key, value)
    assert store.labels(DIGEST) == {}


async def test_the_limits_themselves_are_allowed(store: ContentStore) -> None:
    await store.set_label(DIGEST, "k" * KEY_BYTES_MAX, b"v" * (SIZE_MAX - KEY_BYTES_MAX))


async def test_a_store_without_a_table_keeps_no_labels(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    await store.add(DIGEST, DATA)
    assert store.labels(DIGEST) == {}
    await store.sweep_labels()
    with pytest.raises(NotPermitted, match="keeps no labels"):
        await store.set_label(DIGEST, "a", b"1")
    await store.delete(DIGEST)


async def test_a_change_that_fails_on_disk_has_no_effect(
    database: Database, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.set_label(DIGEST, "a", b"1")

    async def fail(change: Callable[[sqlite3.Connection], object], *, frees: bool = False) -> None:
        """Fail as a transaction does whose COMMIT finds no space."""
        with closing(sqlite3.connect(":memory:")) as db:
            db.executescript(SCHEMA)
            change(db)
        raise NoSpace("full")

    labels = Labels(database)
    monkeypatch.setattr(database, "write", fail)
    with pytest.raises(NoSpace):
        await store.set_label(DIGEST, "a", b"2")
    with pytest.raises(NoSpace):
        await store.remove_label(DIGEST, "a")
    with pytest.raises(NoSpace):
        await labels.clear(DIGEST)
    assert store.labels(DIGEST) == labels.of(DIGEST) == {"a": b"1"}


async def test_several_labels_change_at_once_or_not_at_all(database: Database, store: ContentStore) -> None:
    await store.update_labels(DIGEST, {"a": b"1", "b": b"2"})
    await store.update_labels(DIGEST, {"a": None, "b": b"3", "never was": None})
    for changes in ({"c": b"4", "": b"5"}, {"c": b"4", "b": b"x" * SIZE_MAX}):
        with pytest.raises(Invalid):
            await store.update_labels(DIGEST, changes)
    assert store.labels(DIGEST) == Labels(database).of(DIGEST) == {"b": b"3"}
    with pytest.raises(NotFound):
        await store.update_labels(Digest.of(b"nothing"), {"a": b"1"})


async def test_a_blob_that_is_removed_while_it_is_labelled_has_no_labels(
    database: Database, store: ContentStore
) -> None:
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ignore_absence, store.set_label, DIGEST, "a", b"1")
            nursery.start_soon(store.delete, DIGEST)
        assert store.labels(DIGEST) == Labels(database).of(DIGEST) == {}
        await store.add(DIGEST, DATA)


async def ignore_absence(function: Callable[..., Awaitable[None]], *arguments: object) -> None:
    with suppress(NotFound):
        await function(*arguments)
