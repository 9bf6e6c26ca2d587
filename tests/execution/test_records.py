"""Records on disk: each is whole or absent and is found without a search; a lock shows whether a supervisor lives."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from imgfs.errors import AlreadyExists, Busy, ImgfsError, NotFound, StorageFailed, TooManyOpen
from imgfs.execution.containers import Containers
from imgfs.execution.records.record import (
    LOST,
    Container,
    ContainerRecord,
    ContainerStatus,
    InstalledRuntime,
    now,
    start_time,
)
from imgfs.execution.records.records import ContainerRecords, new_key


def container(id: str, key: str | None = None) -> Container:
    return Container(
        id=id,
        image="box",
        digest="sha256:" + "0" * 64,
        platform="linux/amd64",
        chain="sha256:" + "1" * 64,
        snapshot=key or new_key(id),
        created=now(),
        args=["true"],
        tty=False,
        detach=True,
        remove=False,
        runtime=InstalledRuntime("runc", "/usr/sbin/runc"),
        stop_signal="SIGTERM",
        labels={"a": "b"},
        mountpoint="/mnt",
    )


def made(records: ContainerRecords, id: str, status: ContainerStatus) -> ContainerRecord:
    record = records.make()
    os.close(record.take_lock())
    record.write_container(container(id))
    record.write_status(status)
    return records.publish(record, id)


@pytest.fixture
def records(tmp_path: Path) -> ContainerRecords:
    """The records of an empty state directory."""
    return ContainerRecords(tmp_path)


def test_record_has_its_name_only_when_it_is_whole(records: ContainerRecords) -> None:
    record = records.make()
    assert [one.path for one in records.unfinished()] == [record.path]
    with pytest.raises(NotFound):
        records.get("one")
    record.write_container(container("one"))
    published = records.publish(record, "one")
    assert records.get("one") == published
    assert published.container().labels == {"a": "b"}
    assert records.unfinished() == []
    records.forget(published)
    assert list(records.directory.glob("*")) == [records.runtime_root]


def test_name_is_taken_once(records: ContainerRecords) -> None:
    made(records, "one", ContainerStatus(status="stopped"))
    other = records.make()
    other.write_container(container("one"))
    with pytest.raises(AlreadyExists, match="container one: exists already"):
        records.publish(other, "one")


def test_snapshot_leads_to_its_container(records: ContainerRecords) -> None:
    stopped = made(records, "one-two", ContainerStatus(status="stopped"))
    key = stopped.container().snapshot
    assert records.user_of(key) == stopped
    assert not records.is_used(key)
    assert records.rootfs_of(key) is None
    for other in ("one-two", "one-two-00000000", "x", "", "../x-1", "-", "a/b-c"):
        assert records.user_of(other) is None
    alive = ContainerStatus(status="running", pid=os.getpid(), start_time=start_time(os.getpid()))
    assert records.is_used(made(records, "three", alive).container().snapshot)


def test_the_lock_shows_whether_there_is_a_supervisor(records: ContainerRecords) -> None:
    record = made(records, "one", ContainerStatus(status="running", pid=1, start_time=0, started="then"))
    lock = record.take_lock()
    assert record.is_supervised()
    assert record.status().status == "running"
    with pytest.raises(Busy, match="container one: is running"):
        record.take_lock()
    os.close(lock)
    assert record.status() == ContainerStatus(status="stopped", started="then", reason=LOST)


def test_pid_alone_is_no_proof_of_life(records: ContainerRecords) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        started = start_time(process.pid)
        assert started
        alive = ContainerStatus(status="running", pid=process.pid, start_time=started)
        assert made(records, "one", alive).status() == alive
        other = ContainerStatus(status="running", pid=process.pid, start_time=started - 1)
        assert made(records, "two", other).status().status == "stopped"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert records.get("one").status().reason == LOST  # a zombie is not alive


def test_without_free_descriptors_an_error_is_raised_and_no_container_counts_as_ended(
    records: ContainerRecords,
) -> None:
    alive = ContainerStatus(status="running", pid=os.getpid(), start_time=start_time(os.getpid()))
    left, record = made(records, "left", alive), made(records, "one", ContainerStatus(status="running"))
    lock, containers = record.take_lock(), Containers(records, keep_deleted=0)

    async def delete(id: str) -> None:
        async with containers.ended(id) as ended:
            assert ended.made
            await containers.keep(id)

    async def look() -> None:
        await trio.to_thread.run_sync(containers.read, "one")  # start the worker thread first
        with no_more_files():
            questions = [record.is_supervised, record.status, left.status, lambda: start_time(os.getpid())]
            questions += [partial(records.is_used, one.container.snapshot) for one in known]
            questions += [partial(containers.read, "one"), records.gone, records.unfinished]
            questions += [containers.deleted.sweep, partial(records.find_deleted, "one")]
            for question in questions:
                with pytest.raises(TooManyOpen, match=r"open files; raise it \(`ulimit -n`"):
                    question()
            for wait in (partial(delete, "one"), partial(delete, "left"), containers.holdings.chains):
                with pytest.raises(TooManyOpen):
                    await wait()

    known = [containers.read(id) for id in ("left", "one")]
    trio.run(look)
    assert [containers.read(id).status.status for id in ("left", "one")] == ["running", "running"]
    os.close(lock)


@contextmanager
def no_more_files() -> Generator[None]:
    """Let this process open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_container_that_never_started_is_reported_as_such(records: ContainerRecords) -> None:
    record = made(records, "one", ContainerStatus(status="created"))
    assert "never started" in record.status().reason


def test_the_final_status_of_a_deleted_container_reads_back(records: ContainerRecords) -> None:
    record = made(records, "one", ContainerStatus(status="stopped", exit_code=137, signal=9, oom=True, reason="killed"))
    kept = records.keep_deleted(record)
    assert records.find_deleted("one") == kept
    assert (kept.container, kept.status) == (record.container(), record.status())
    assert records.find_deleted("two") is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"status":"dancing"}', b"\xff", b'{"status":"running","pid":"x"}']
)
def test_a_damaged_record_is_reported(records: ContainerRecords, data: bytes) -> None:
    record = made(records, "one", ContainerStatus(status="stopped"))
    (record.path / "status.json").write_bytes(data)
    with pytest.raises(StorageFailed, match="container one: is damaged"):
        record.status()
    (record.path / "container.json").write_bytes(data)
    with pytest.raises(StorageFailed, match="container one: is damaged"):
        record.container()
    assert records.user_of("one-00000000") is None


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    from imgfs.execution.control import Connection

    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(ImgfsError, match="has no supervisor"):
        Connection.open(deep / "control")
