"""What the daemon sees of containers, and in which states they can be deleted."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.disk.durable import TEMPORARY
from imgfs.errors import Busy, NotFound
from imgfs.execution.containers import Containers
from imgfs.execution.records.record import LOST, ContainerStatus, allow_deletion, start_time
from imgfs.execution.records.records import ContainerRecords
from tests.support.containers import CHAIN, fabricated, stopped, supervised

DAY = 86400


@pytest.fixture
def records(tmp_path: Path) -> ContainerRecords:
    return ContainerRecords(tmp_path)


@pytest.fixture
def containers(records: ContainerRecords) -> Containers:
    return Containers(records, keep_deleted=DAY)


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does nothing until the block ends."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_without_containers_the_listing_is_empty(containers: Containers) -> None:
    assert await containers.ids() == []
    assert await containers.unfinished() == []
    assert await containers.outlived() == []
    with pytest.raises(NotFound):
        containers.read("none")
    with pytest.raises(NotFound):
        async with containers.ended("none"):
            pass


async def test_an_unfinished_record_is_not_listed(records: ContainerRecords, containers: Containers) -> None:
    records.make()
    fabricated(records, "whole", stopped(0))
    assert await containers.ids() == ["whole"]


async def test_status_is_the_supervisors_while_it_lives(records: ContainerRecords, containers: Containers) -> None:
    record = fabricated(records, "one", ContainerStatus(status="running", pid=1, start_time=0))
    with supervised(record):
        found = containers.read("one")
        assert (found.status.status, found.status.pid) == ("running", 1)
        with pytest.raises(Busy, match="has ended, but its status is not written yet; try again"):
            async with containers.ended("one"):
                pass
        record.write_status(ContainerStatus(status="running", pid=os.getpid(), start_time=start_time(os.getpid())))
        with pytest.raises(Busy, match="runs; `imgfs kill one` ends it"):
            async with containers.ended("one"):
                pass


async def test_an_end_without_a_supervisor_is_reported_as_lost(
    records: ContainerRecords, containers: Containers
) -> None:
    record = fabricated(records, "one", ContainerStatus(status="running", pid=1, start_time=0))
    with supervised(record) as supervisor:
        supervisor.kill()
        supervisor.wait()
        found = containers.read("one")
    assert (found.status.status, found.status.exit_code, found.status.reason) == ("stopped", None, LOST)
    async with containers.ended("one"):
        await containers.keep("one")
    kept = json.loads(containers.deleted.read("one"))
    assert (kept["status"], kept["exit_code"], kept["reason"]) == ("stopped", None, LOST)


async def test_a_process_without_its_supervisor_runs_and_keeps_its_record(
    records: ContainerRecords, containers: Containers
) -> None:
    with sleeping() as process:
        fabricated(
            records, "one", ContainerStatus(status="running", pid=process.pid, start_time=start_time(process.pid))
        )
        assert containers.read("one").status.status == "running"
        with pytest.raises(Busy):
            async with containers.ended("one"):
                pass
    assert containers.read("one").status.reason == LOST


async def test_a_deletion_excludes_a_start(records: ContainerRecords, containers: Containers) -> None:
    record = fabricated(records, "one", stopped(0))
    async with containers.ended("one") as ended:
        assert ended.made == record.container()
        assert not ended.is_leaving
        assert record.is_supervised()
        with pytest.raises(Busy, match="container one: has ended, and is being deleted"):
            record.take_lock()
    assert not record.is_supervised()


async def test_an_exiting_supervisor_allows_deletion_but_no_start(
    records: ContainerRecords, containers: Containers
) -> None:
    record = fabricated(records, "one", stopped(0), remove=True)
    lock = record.take_lock()
    allow_deletion(lock)
    with pytest.raises(Busy):
        record.take_lock()
    async with containers.ended("one") as ended:
        assert ended.is_leaving
        await containers.forget("one", is_left=True)
    assert await containers.ids() == []
    (left,) = records.gone()
    await containers.sweep()
    assert left.container().id == "one"  # the container is still there
    os.close(lock)
    await containers.sweep()
    assert records.gone() == []


async def test_a_reader_of_the_lock_is_not_an_exiting_supervisor(
    records: ContainerRecords, containers: Containers
) -> None:
    record = fabricated(records, "one", stopped(0))
    os.close(record.take_lock())
    looking = os.open(record.lock, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(record.share_lock)
        os.close(looking)
        lock, is_leaving = waiting.result()
    os.close(lock)
    assert not is_leaving
    looking = os.open(record.lock, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    with pytest.raises(Busy):
        record.share_lock()
    os.close(looking)


async def test_a_waiter_for_a_deleted_containers_lock_does_not_get_its_successor(
    records: ContainerRecords, containers: Containers
) -> None:
    record = fabricated(records, "one", stopped(0), remove=True)
    lock = record.take_lock()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(record.take_lock)
        records.forget(record, is_left=True)
        fabricated(records, "one", stopped(1))
        with pytest.raises(NotFound):
            waiting.result()
    os.close(lock)
    assert containers.read("one").status.exit_code == 1


async def test_the_final_status_outlives_the_record(records: ContainerRecords, containers: Containers) -> None:
    fabricated(records, "one", stopped(137, signal=9, oom=True))
    async with containers.ended("one"):
        await containers.keep("one")
        await containers.forget("one")
    assert await containers.ids() == []
    assert records.unfinished() == []
    kept = json.loads(containers.deleted.read("one"))
    assert (kept["image"], kept["exit_code"], kept["signal"], kept["oom"]) == ("registry.test/app:1", 137, 9, True)


@pytest.mark.parametrize("name", ["container.json", "status.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
async def test_a_damaged_record_is_listed_and_can_be_deleted(
    records: ContainerRecords, containers: Containers, name: str, how: str
) -> None:
    record = fabricated(records, "one", stopped(3))
    file = record.path / name
    file.write_text(file.read_text()[:20]) if how == "cut" else file.unlink()
    assert await containers.ids() == ["one"]
    assert containers.changed("one")
    async with containers.ended("one"):
        await containers.keep("one")
        await containers.forget("one")
    assert json.loads(containers.deleted.read("one"))["id"] == "one"
    assert await containers.ids() == []


async def test_chains_of_all_containers_are_known(records: ContainerRecords, containers: Containers) -> None:
    assert await containers.holdings.chains() == set()
    fabricated(records, "one", stopped(0))
    assert await containers.holdings.chains() == {CHAIN}
    async with containers.ended("one"):
        await containers.forget("one")
    assert await containers.holdings.chains() == set()


async def test_a_reused_id_holds_only_its_new_chain(records: ContainerRecords, containers: Containers) -> None:
    other = f"sha256:{'e' * 64}"
    fabricated(records, "one", stopped(0))
    assert await containers.holdings.chains() == {CHAIN}
    async with containers.ended("one"):
        await containers.forget("one")
    fabricated(records, "one", stopped(0), chain=other)
    assert await containers.holdings.chains() == {other}


async def test_an_unchanged_directory_is_not_scanned_again(records: ContainerRecords, containers: Containers) -> None:
    record = fabricated(records, "one", stopped(0))
    long_ago = time.time() - 60
    os.utime(records.directory, (long_ago, long_ago))
    assert await containers.holdings.chains() == {CHAIN}
    (record.path / "container.json").write_text("damaged after it was read")
    assert await containers.holdings.chains() == {CHAIN}


async def test_the_container_of_a_snapshot_is_reported_until_it_ends(
    records: ContainerRecords, containers: Containers
) -> None:
    record = fabricated(records, "one", ContainerStatus(status="running", pid=1, start_time=0), snapshot="one-key")
    with supervised(record):
        assert await containers.user_of("one-key") == "one"
        assert await containers.user_of("one-other") is None
        assert await containers.user_of("other") is None
        record.write_status(stopped(0))
        assert await containers.user_of("one-key") is None


async def test_a_begun_deletion_is_unfinished(records: ContainerRecords, containers: Containers) -> None:
    fabricated(records, "begun", stopped(0))
    fabricated(records, "kept", stopped(0))
    async with containers.ended("begun"):
        await containers.keep("begun")
    assert await containers.unfinished() == ["begun"]


async def test_a_reused_id_is_not_a_begun_deletion(records: ContainerRecords, containers: Containers) -> None:
    fabricated(records, "one", stopped(0), created="2026-01-01T00:00:00Z")
    async with containers.ended("one"):
        await containers.keep("one")
        await containers.forget("one")
    fabricated(records, "one", stopped(0), created="2026-01-02T00:00:00Z")
    assert await containers.unfinished() == []


async def test_a_container_with_rm_is_unfinished_once_its_process_ended(
    records: ContainerRecords, containers: Containers
) -> None:
    record = fabricated(records, "one", ContainerStatus(status="running", pid=1, start_time=0), remove=True)
    with supervised(record):
        assert await containers.unfinished() == []
    assert await containers.unfinished() == ["one"]


async def test_a_kept_final_status_expires(records: ContainerRecords, containers: Containers) -> None:
    for id in ("old", "new"):
        fabricated(records, id, stopped(0))
        async with containers.ended(id):
            await containers.keep(id)
            await containers.forget(id)
    before = time.time() - 2 * DAY
    os.utime(records.deleted / "old.json", (before, before))
    assert [id for id, _ in await containers.outlived()] == ["old"]
    await containers.forget_deleted("old")
    assert containers.deleted.ids() == ["new"]
    with pytest.raises(NotFound):
        await containers.forget_deleted("old")


async def test_an_unfinished_record_is_removed_unless_it_may_have_a_writer(
    records: ContainerRecords, containers: Containers
) -> None:
    await containers.sweep()
    records.deleted.mkdir(parents=True)
    long_ago = time.time() - 3600
    for name in (f"{TEMPORARY}old", f"{TEMPORARY}new", "kept.json"):
        (records.deleted / name).touch()
    for name in (f"{TEMPORARY}old", "kept.json"):
        os.utime(records.deleted / name, (long_ago, long_ago))
    await containers.sweep()
    assert sorted(os.listdir(records.deleted)) == [f"{TEMPORARY}new", "kept.json"]
