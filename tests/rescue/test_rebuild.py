"""A lost or damaged database is rebuilt from its intact tables, the copy and the files; the damaged file is kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from imgfs.assembly.tables import TABLES
from imgfs.content.labels import Labels
from imgfs.database.database import Database
from imgfs.errors import NoSpace
from imgfs.images.catalog import Catalog
from imgfs.images.names import Names
from imgfs.leases.store import Leases
from imgfs.oci.descriptor import OCI_MANIFEST
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.rescue import rebuild as module
from imgfs.rescue.keeper import Keeper
from imgfs.rescue.rebuild import open_database, open_frozen
from imgfs.snapshots.directories import SnapshotDirectories
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.rows import SnapshotKind
from imgfs.snapshots.store import SnapshotStore
from imgfs.testing.build import image
from imgfs.testing.images import File, layer
from tests.content import full_disk
from tests.snapshots.storing import Warehouse

MADE = image([layer([File("a", b"1")])])
MANIFEST = Digest.of(MADE.document)
NAME = "registry.example/box:1"


class Rooms:
    """The stores of each package on the database of a state directory, which is rebuilt if necessary."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.database, self.rebuilt = open_database(state, TABLES)
        self.names = Names(self.database)
        self.labels = Labels(self.database)
        self.leases = Leases(self.database)
        self.catalog = Catalog(self.database)
        self.graph = SnapshotGraph(self.database)
        self.snapshots = SnapshotStore(state, self.database, self.graph, lambda _: None)

    def picture(self) -> dict[str, object]:
        return {
            "names": {one.name: one.digest for one in self.names},
            "labels": self.labels.of("sha256:aa"),
            "leases": {one.id: (one.expires, sorted(one.links)) for one in self.leases},
            "snapshots": {
                one.id: (one.number, one.kind, one.parent, self.snapshots.labels(one.id)) for one in self.snapshots
            },
        }

    def close(self) -> None:
        self.database.close()


async def fill(rooms: Rooms) -> None:
    await rooms.names.create(NAME, MANIFEST)
    await rooms.names.create("local", Digest.of(b"local"))
    await rooms.labels.put("sha256:aa", "key", b"\xff", lambda _: True)
    await rooms.leases.create("mine", 2**62)
    store = rooms.snapshots
    await store.prepare("base")
    await store.commit("base", "done")
    await store.prepare("work")
    await store.set_parent("work", "done")
    await store.view("view", "done")
    await store.set_label("done", "color", b"red")
    await Keeper(rooms.state, rooms.database, TABLES.kept).save()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("made")
    place = state / f"blobs/sha256/{MANIFEST.hex[:2]}"
    place.mkdir(parents=True)
    (place / MANIFEST.hex).write_bytes(MADE.document)
    rooms = Rooms(state)
    trio.run(fill, rooms)
    rooms.close()
    return state


@pytest.fixture
def state(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "state", symlinks=True)


def seen(state: Path) -> dict[str, object]:
    rooms = Rooms(state)
    try:
        return rooms.picture()
    finally:
        rooms.close()


def gone(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def foreign(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("harm", [gone, empty, half, foreign, zeros])
def test_an_unreadable_database_is_rebuilt_from_its_copy(state: Path, harm: Callable[[Path], None]) -> None:
    before = seen(state)
    database = state / "imgfs.db"
    harm(database)
    left = database.read_bytes() if database.exists() else b""
    rooms = Rooms(state)
    assert rooms.picture() == before
    assert rooms.rebuilt is not None
    assert rooms.rebuilt.copied
    rooms.close()
    kept = [path.read_bytes() for path in state.glob("imgfs.db.damaged-*")]
    assert kept == ([left] if left else [])
    again = Rooms(state)
    assert (again.rebuilt, again.picture()) == (None, before)
    again.close()


def test_any_damaged_page_leaves_a_database_that_opens(state: Path) -> None:
    """If any one page is damaged, every row is found, in the database or in the copy."""
    before, kept = seen(state), (state / "imgfs.db").read_bytes()
    rebuilt = 0
    for page in range(len(kept) // 4096):
        data = bytearray(kept)
        data[page * 4096 : page * 4096 + 8] = os.urandom(8)
        for suffix in ("-wal", "-shm"):
            (state / f"imgfs.db{suffix}").unlink(missing_ok=True)
        (state / "imgfs.db").write_bytes(data)
        rooms = Rooms(state)
        assert rooms.picture() == before, page
        rebuilt += rooms.rebuilt is not None
        rooms.close()
    assert rebuilt > 5


def test_intact_tables_are_preferred_to_the_copy(state: Path) -> None:
    rooms = Rooms(state)
    trio.run(rooms.names.create, "newer", Digest.of(b"newer"))
    query = "SELECT rootpage FROM sqlite_master WHERE name = 'descriptors'"
    (root,) = rooms.database.read_now(lambda db: db.execute(query).fetchone())
    rooms.close()
    with (state / "imgfs.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff")
    again = Rooms(state)
    assert again.rebuilt is not None
    assert "names" in again.rebuilt.salvaged
    assert again.names.get("newer") is not None
    again.close()


HARMED = {
    "a name that is not text": "UPDATE names SET name = x'ff00' WHERE name = 'local'",
    "a name with invalid UTF-8": "UPDATE names SET name = CAST(x'6cff' AS TEXT) WHERE name = 'local'",
    "an invalid digest": "UPDATE names SET digest = 'sha256:x' WHERE name = 'local'",
    "an invalid time": "UPDATE names SET updated = 'now' WHERE name = 'local'",
    "an unknown kind": "UPDATE user_snapshots SET kind = 'odd' WHERE name = CAST('view' AS BLOB)",
    "an invalid label key": "UPDATE content_labels SET key = ''",
    "an invalid lease ID": "UPDATE leases SET id = CAST('a/b' AS BLOB)",
    "a missing column": "ALTER TABLE names RENAME COLUMN digest TO target",
    "a table of another form": "DROP TABLE snapshots",
}


@pytest.mark.parametrize("harm", HARMED)
def test_an_invalid_row_comes_back_from_the_copy_and_no_other_row_is_lost(state: Path, harm: str) -> None:
    before = seen(state)
    with closing(sqlite3.connect(state / "imgfs.db")) as db:
        db.execute("INSERT INTO names VALUES ('newer', ?, 1)", (MANIFEST,))
        db.execute(HARMED[harm])
        db.execute("CREATE TABLE IF NOT EXISTS snapshots (number INTEGER PRIMARY KEY)")
        db.commit()
    again = Rooms(state)
    picture = again.picture()
    assert again.rebuilt is not None
    assert again.rebuilt.reason
    again.close()
    names = picture["names"]
    assert isinstance(names, dict)
    assert names.pop("newer", None) == (None if "column" in harm else MANIFEST)
    assert picture == before
    assert list(state.glob("imgfs.db.damaged-*"))
    again = Rooms(state)
    assert again.rebuilt is None
    again.close()


@pytest.mark.parametrize("harm", [harm for harm in HARMED if "column" not in harm and "table" not in harm])
def test_a_frozen_database_leaves_out_an_invalid_row(state: Path, harm: str) -> None:
    before = seen(state)
    with closing(sqlite3.connect(state / "imgfs.db")) as db:
        db.execute(HARMED[harm])
        db.commit()
    content = (state / "imgfs.db").read_bytes()
    frozen = open_frozen(state, TABLES)
    here = {one.name for one in Names(frozen)}
    assert {NAME} <= here <= {NAME, "local"}
    assert ("local" in here) == ("names" not in HARMED[harm])
    assert len(Leases(frozen)) == ("leases" not in HARMED[harm])
    frozen.close()
    assert (state / "imgfs.db").read_bytes() == content
    assert seen(state) == before


def test_the_previous_copy_is_used_if_the_latest_is_torn(state: Path) -> None:
    rooms = Rooms(state)
    trio.run(rooms.names.create, "newer", Digest.of(b"newer"))
    assert trio.run(Keeper(state, rooms.database, TABLES.kept).save)
    rooms.close()
    half(state / "imgfs.copy")
    gone(state / "imgfs.db")
    again = Rooms(state)
    assert (again.names.get("newer"), again.names.get("local") is not None) == (None, True)
    again.close()


def test_without_a_copy_snapshots_are_found_by_their_directories(state: Path) -> None:
    for name in ("imgfs.db", "imgfs.copy"):
        (state / name).unlink()
    rooms = Rooms(state)
    found = {one.id: (one.kind, one.parent) for one in rooms.snapshots}
    assert found == {"done": (SnapshotKind.COMMITTED, None), "active/work": (SnapshotKind.ACTIVE, "done")}
    assert list(rooms.names) == []
    rooms.close()


def test_the_note_in_a_snapshot_directory_overrides_an_older_copy(state: Path) -> None:
    rooms = Rooms(state)
    trio.run(rooms.snapshots.commit, "work", "later")
    rooms.close()
    gone(state / "imgfs.db")
    again = Rooms(state)
    assert again.snapshots.stat("later").kind is SnapshotKind.COMMITTED
    assert again.snapshots.find("active/work") is None
    again.close()


def test_changes_without_a_note_become_a_recovered_snapshot_whose_parent_can_be_set(state: Path) -> None:
    directories = SnapshotDirectories(state)
    directories.make(50)
    (directories.upper(50) / "file").write_bytes(b"mine")
    directories.make(51)  # an empty directory is not recovered
    gone(state / "imgfs.db")
    rooms = Rooms(state)
    assert rooms.snapshots.find_own("active/recovered-51") is None
    trio.run(rooms.snapshots.set_parent, "recovered-50", "done")
    assert (rooms.snapshots.upper("active/recovered-50") / "file").read_bytes() == b"mine"
    rooms.close()


def test_two_directories_that_claim_the_same_name_are_both_kept(state: Path) -> None:
    warehouse = Warehouse(state)
    trio.run(warehouse.store.prepare, "twin")
    number, note = warehouse.store.stat("active/twin").number, b""
    note = SnapshotDirectories(state).noted(number) or b""
    warehouse.close()
    SnapshotDirectories(state).make(60)
    SnapshotDirectories(state).note(60, note)
    gone(state / "imgfs.db")
    rooms = Rooms(state)
    assert {one.number for one in rooms.snapshots} >= {number, 60}
    assert rooms.snapshots.find_own("active/recovered-60") is not None
    rooms.close()


async def test_the_sources_of_images_are_rebuilt_from_names_and_documents(state: Path) -> None:
    gone(state / "imgfs.db")
    rooms = Rooms(state)
    source = Source("registry.example", "box")
    assert await rooms.catalog.sources(MANIFEST) == [source]
    assert await rooms.catalog.sources(MADE.layers[0].digest) == [source]
    known = await rooms.catalog.proven(MANIFEST)
    assert known is not None
    assert (known.size, known.media_type) == (len(MADE.document), OCI_MANIFEST)
    rooms.close()


def test_a_new_state_directory_is_not_reported_as_rebuilt(tmp_path: Path) -> None:
    rooms = Rooms(tmp_path)
    assert rooms.rebuilt is None
    rooms.close()


@pytest.mark.parametrize("step", ["_make", "fsync_path", "set_aside", "publish"])
def test_the_next_start_finishes_a_rebuild_that_crashed(
    state: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = seen(state)
    half(state / "imgfs.db")

    class Killed(BaseException):
        pass

    for after in (False, True):
        real = getattr(module, step)

        def killed(*arguments: object, real: Callable[..., object] = real, after: bool = after) -> None:
            if after:
                real(*arguments)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(module, step, killed)
            with pytest.raises(Killed):
                Rooms(state)
    assert seen(state) == before


@pytest.mark.parametrize("harm", [gone, foreign])
def test_the_database_is_rebuilt_on_a_full_disk(state: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    before = seen(state)
    with full_disk.small_disk(tmp_path / "small", 8 << 20) as disk:
        shutil.copytree(state, disk / "state", symlinks=True)
        assert seen(disk / "state") == before  # opening it also allocates the reserve
        harm(disk / "state/imgfs.db")
        full_disk.fill(disk)
        assert seen(disk / "state") == before


def test_a_rebuild_without_any_free_space_raises_no_space(state: Path, tmp_path: Path) -> None:
    with full_disk.small_disk(tmp_path / "small", 8 << 20) as disk:
        shutil.copytree(state, disk / "state", symlinks=True)
        (disk / "state/imgfs.db").unlink()
        (disk / "state/imgfs.db.reserve").unlink(missing_ok=True)
        full_disk.fill(disk)
        with pytest.raises(NoSpace, match="make room"):
            Rooms(disk / "state")


def test_a_database_that_another_program_has_open_is_not_damaged(state: Path) -> None:
    with sqlite3.connect(state / "imgfs.db") as other:
        rooms = Rooms(state)
        assert rooms.rebuilt is None
        rooms.close()
    other.close()


def test_ten_thousand_names_are_rebuilt(tmp_path: Path) -> None:
    rooms = Rooms(tmp_path)
    rows = [(f"registry.example/box{n}:1", Digest.of(b"%d" % n), n) for n in range(10_000)]
    trio.run(rooms.database.write, lambda db: db.executemany("INSERT INTO names VALUES (?, ?, ?)", rows) and None)
    assert trio.run(Keeper(tmp_path, rooms.database, TABLES.kept).save)
    rooms.close()
    gone(tmp_path / "imgfs.db")
    again = Rooms(tmp_path)
    assert len(again.names) == 10_000
    again.close()


def test_an_intact_database_is_opened_without_a_rebuild(state: Path) -> None:
    opened, rebuilt = open_database(state, TABLES)
    assert isinstance(opened, Database)
    assert rebuilt is None
    opened.close()
