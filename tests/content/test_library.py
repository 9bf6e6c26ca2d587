"""open_store: one program owns a state directory, which is consistent however the last program ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
import trio.testing

from imgfs.content import ContentInfo, ContentLibrary, open_store
from imgfs.content.ingests.store import IngestWriter
from imgfs.disk.durable import temporary_name
from imgfs.errors import AlreadyExists, Busy, Cancelled, Invalid, NotFound, NotPermitted, ReadOnly, StorageFailed
from imgfs.kernel.bind import bind_read_only
from imgfs.kernel.mounts import unmount
from imgfs.oci.digest import Digest
from tests.support.mounted import Mounted

DATA = bytes(range(256)) * 1000
DIGEST = Digest.of(DATA)


async def put(store: ContentLibrary, ref: str = "ref", data: bytes = DATA) -> None:
    async with store.writer(ref) as writer:
        await writer.write(data)
        await writer.commit()


def files(state: Path) -> dict[str, int]:
    """Every file of a state directory, with the moment of its last change.

    But for SQLite's shared memory, where readers leave marks, of which the kernel tells when it likes.
    """
    found = (path for path in state.rglob("*") if not path.name.endswith("-shm"))
    return {str(path.relative_to(state)): path.lstat().st_mtime_ns for path in found}


async def test_it_creates_its_directory_and_finds_stored_blobs_again(tmp_path: Path) -> None:
    state = tmp_path / "new/state"
    async with open_store(state) as store:
        assert (list(store.walk()), store.list()) == ([], ())
        await put(store)
        made = await store.update(DIGEST, {"a": b"1"})
    async with open_store(str(state)) as store:
        assert list(store.walk()) == [made] == [store.info(DIGEST)]
        assert made == ContentInfo(DIGEST, len(DATA), made.committed, {"a": b"1"})
        assert await store.read_at(DIGEST, 255, 3) == b"\xff\x00\x01"


@pytest.mark.parametrize("digest", ["", "sha256:1", "../x", "\0", DIGEST.upper(), "md5:" + "0" * 32])
async def test_every_call_accepts_only_well_formed_digests(tmp_path: Path, digest: str) -> None:
    async with open_store(tmp_path) as store:
        await put(store)
        assert store.info(str(DIGEST)).digest == DIGEST
        with pytest.raises(AlreadyExists):
            async with store.writer("again", expected=str(DIGEST)):
                pass
        for call in (store.info, store.open):
            with pytest.raises(Invalid):
                call(digest)
        with pytest.raises(Invalid):
            await store.read_at(digest, 0, 1)
        with pytest.raises(Invalid):
            await store.update(digest, {"a": b"1"})
        with pytest.raises(Invalid):
            await store.delete(digest)
        with pytest.raises(Invalid):
            async with store.writer("promised", expected=digest):
                pass
        async with store.writer("other") as writer:
            with pytest.raises(Invalid):
                await writer.commit(digest)
        with pytest.raises(Invalid):
            await store.commit("other", digest)


async def test_arguments_of_wrong_types_are_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await put(store)
        assert await store.read_at(DIGEST, 2**70, 5) == b""
        for offset, size in ((-1, 1), (0, -1)):
            with pytest.raises(Invalid, match="no negative numbers"):
                await store.read_at(DIGEST, offset, size)
        for value in ("text", "", 1):
            with pytest.raises(Invalid, match="label 'a': value is"):
                await store.update(DIGEST, {"a": value})  # pyright: ignore[reportArgumentType]
        with pytest.raises(Invalid, match="cannot be stored in a file name"):
            async with store.writer("a\ud800"):
                pass
        async with store.writer("closed") as writer:
            await writer.close()
            with pytest.raises(NotPermitted, match="its writer was closed; open another"):
                await writer.write(b"x")


async def test_a_relative_path_means_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_store("state") as store:
        monkeypatch.chdir("/")
        await put(store)
        await store.update(DIGEST, {"a": b"1"})
    assert (tmp_path / "state" / "imgfs.db").exists()


async def test_only_one_program_at_a_time_opens_a_state_directory(tmp_path: Path) -> None:
    async with open_store(tmp_path):
        with pytest.raises(Busy, match=f"pid {os.getpid()} as a library"):
            async with open_store(tmp_path):
                pass
    async with open_store(tmp_path):
        pass


async def test_an_exception_in_the_context_is_raised_as_itself_and_unlocks_the_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        async with open_store(tmp_path) as store:
            store.info(DIGEST)
    with trio.CancelScope() as scope:
        async with open_store(tmp_path) as store, store.writer("cut") as writer:
            await writer.write(b"12345")
            scope.cancel()
            await trio.sleep_forever()
    async with open_store(tmp_path) as store:
        assert store.status("cut").offset == store.status("cut").durable == 5


async def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed):
        async with open_store(tmp_path / "file/state"):
            pass
    (tmp_path / "imgfs.db").write_bytes(b"no database at all, but long enough to be looked at as one" * 20)
    with pytest.raises(StorageFailed, match=r"imgfs\.db"):
        async with open_store(tmp_path):
            pass
    (tmp_path / "imgfs.db").unlink()
    async with open_store(tmp_path):
        pass


async def test_a_writer_commits_as_the_given_the_expected_or_the_actual_digest(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        for digest, expected in ((DIGEST, None), (None, DIGEST), (None, None)):
            async with store.writer("ref", expected=expected) as writer:
                await writer.write(DATA)
                assert (await writer.commit(digest)).digest == DIGEST
            await store.delete(DIGEST)
        async with store.writer("ref", expected=Digest.of(DATA, "sha512")) as writer:
            await writer.write(DATA)
            assert (await writer.commit()).digest == Digest.of(DATA, "sha512")


async def test_no_other_writer_gets_a_ref_between_writer_and_commit(tmp_path: Path) -> None:
    outcomes: list[str] = []

    async def intrude(store: ContentLibrary) -> None:
        try:
            async with store.writer("ref") as writer:
                outcomes.append(f"writer at {writer.offset}")
        except (Busy, AlreadyExists) as error:
            outcomes.append(type(error).__name__)

    async with open_store(tmp_path) as store, trio.open_nursery() as nursery, store.writer("ref") as writer:
        await writer.write(DATA)
        for _ in range(4):
            nursery.start_soon(intrude, store)
        await trio.testing.wait_all_tasks_blocked()
        await writer.commit()
    assert set(outcomes) <= {"Busy", "writer at 0"}
    assert len(outcomes) == 4


async def test_every_call_of_a_closed_store_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await put(store)
        opening = store.writer("left open")
        writer: IngestWriter = await opening.__aenter__()
        await writer.write(b"kept")
    before = files(tmp_path)
    for call in (store.list, lambda: list(store.walk()), lambda: store.info(DIGEST), lambda: store.open(DIGEST)):
        with pytest.raises(NotPermitted, match="was closed"):
            call()
    for late in (lambda: put(store, "late"), lambda: store.delete(DIGEST), lambda: store.update(DIGEST, {"a": b"1"})):
        with pytest.raises(NotPermitted, match="was closed"):
            await late()
    with pytest.raises(Cancelled, match="was closed"):
        await writer.write(b"lost")
    await opening.__aexit__(None, None, None)
    await store.close()
    assert files(tmp_path) == before
    async with open_store(tmp_path) as store:
        assert store.status("left open").offset == 4


async def test_read_only_changes_nothing_and_sees_the_present_state(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        async with open_store(tmp_path / "nothing", read_only=True):
            pass
    state = tmp_path / "state"
    async with open_store(state) as writing:
        await put(writing)
        await writing.update(DIGEST, {"a": b"1"})
        async with writing.writer("unfinished") as writer:
            await writer.write(b"12345")
        (state / "ingest" / temporary_name()).write_bytes(b"somebody is at work on this")
        before = files(state)
        async with open_store(state, read_only=True) as reading:
            assert list(reading.walk()) == [writing.info(DIGEST)]
            assert [status.offset for status in reading.list()] == [5]
            assert await reading.read_at(DIGEST, 0, 4) == DATA[:4]
            for change in (
                lambda: put(reading, "other"),
                lambda: reading.commit("unfinished", DIGEST),
                lambda: reading.abort("unfinished"),
                lambda: reading.delete(DIGEST),
                lambda: reading.update(DIGEST, {"a": None}),
            ):
                with pytest.raises(ReadOnly, match="was opened for reading"):
                    await change()
        assert files(state) == before
        await put(writing, "later", b"later")


async def test_read_only_opens_an_unused_and_an_empty_directory(tmp_path: Path) -> None:
    async with open_store(tmp_path, read_only=True) as store:
        assert (list(store.walk()), store.list()) == ([], ())
    assert files(tmp_path) == {}
    async with open_store(tmp_path) as store:
        await put(store)
        await store.update(DIGEST, {"a": b"1"})
    before = files(tmp_path)
    async with open_store(tmp_path, read_only=True) as store:
        assert dict(store.info(DIGEST).labels) == {"a": b"1"}
    assert files(tmp_path) == before


async def test_read_only_opens_a_directory_on_a_read_only_filesystem(tmp_path: Path) -> None:
    (shown := tmp_path / "shown").mkdir()
    async with open_store(tmp_path / "state") as store:
        await put(store)
        await store.update(DIGEST, {"a": b"1"})
    bind_read_only(str(tmp_path / "state"), str(shown), trusted=True)
    try:
        for read_only in (True, False):
            async with open_store(shown, read_only=read_only) as store:
                assert dict(store.info(DIGEST).labels) == {"a": b"1"}
                assert await store.read_at(DIGEST, 0, len(DATA)) == DATA
                with pytest.raises(ReadOnly, match="filesystem is read-only"):
                    await store.delete(DIGEST)
    finally:
        unmount(str(shown))


KILLED = """
    import os, signal, sys, trio
    from imgfs.content import open_store

    async def main():
        async with open_store(sys.argv[1]) as store:
            async with store.writer("stored") as writer:
                await writer.write(b"stored")
                blob = await writer.commit()
            await store.update(blob.digest, {"a": b"1"})
            async with store.writer("unfinished", total=100) as writer:
                await writer.write(b"x" * 40)
                os.kill(os.getpid(), signal.SIGKILL)

    trio.run(main)
"""


async def test_opening_repairs_what_a_kill_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    done = await trio.run_process(command, check=False)
    assert done.returncode == -signal.SIGKILL
    left = [tmp_path / temporary_name(), tmp_path / "ingest" / temporary_name()]
    for path in left:
        path.write_bytes(b"of a write that was cut off")
    (tmp_path / "ingest/no-record").mkdir()
    async with open_store(tmp_path) as store:
        assert [(info.size, dict(info.labels)) for info in store.walk()] == [(6, {"a": b"1"})]
        assert [(status.ref, status.offset, status.total) for status in store.list()] == [("unfinished", 40, 100)]
        assert not [path for path in [*left, tmp_path / "ingest/no-record"] if path.exists()]
        async with store.writer("unfinished") as writer:
            await writer.write(b"y" * 60)
            assert (await writer.commit()).digest == Digest.of(b"x" * 40 + b"y" * 60)


async def test_in_another_era_only_synced_bytes_are_trusted(tmp_path: Path) -> None:
    """A power cut is simulated by a record with another era."""
    async with open_store(tmp_path, era="before") as store, store.writer("ref") as writer:
        await writer.write(b"synced")
        await writer.fsync()
        data = store.status("ref").path
    data.write_bytes(b"synced, and what no fsync vouches for")
    async with open_store(tmp_path, read_only=True, era="before") as store:
        assert store.status("ref").offset == 37
    async with open_store(tmp_path, era="after") as store:
        assert store.status("ref").offset == 6


def test_a_daemon_and_a_library_exclude_one_another_and_see_the_same(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Mounted(tmp_path) as mount:

        async def store_some() -> None:
            async with open_store(state) as store:
                await put(store)
                await store.update(DIGEST, {"a": b"1"})
                async with store.writer("unfinished") as writer:
                    await writer.write(b"12345")
                refused = await trio.to_thread.run_sync(mount.try_start)
                assert (refused.returncode, f"pid {os.getpid()} as a library" in refused.stderr) == (7, True)

        async def look() -> None:
            with pytest.raises(Busy, match=str(mount.path)):
                async with open_store(state):
                    pass
            async with open_store(state, read_only=True) as store:
                assert DIGEST in {info.digest for info in store.walk()}

        trio.run(store_some)
        mount.start()
        assert (mount.content / DIGEST).read_bytes() == DATA
        assert os.getxattr(mount.content / DIGEST, "user.label.a") == b"1"
        assert (mount.content / "ingest/unfinished").stat().st_size == 5
        trio.run(look)
        mount.stop()
        trio.run(store_some_more, state)


async def store_some_more(state: Path) -> None:
    async with open_store(state) as store:
        assert [status.offset for status in store.list()] == [5]
        with pytest.raises(AlreadyExists):
            await put(store)


@pytest.mark.parametrize("package", ["content", "snapshots"])
def test_it_loads_neither_fuse_nor_http_nor_a_command_line(package: str) -> None:
    code = f"import sys, imgfs.{package} as one; [getattr(one, name) for name in one.__all__]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "trio" in loaded
    assert loaded.isdisjoint({"pyfuse3", "httpx", "httpcore", "click", "rich"})


def test_a_package_without_its_library_loads_little() -> None:
    code = "import sys, imgfs.disk.durable; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "imgfs.content.library" not in done.stdout.split()
