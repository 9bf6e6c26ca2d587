"""The order in which a container is deleted, and what remains if a step fails or the daemon is killed after it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import trio

from imgfs.aio.flight import Flights
from imgfs.errors import Busy, ImgfsError, NotFound, StorageFailed
from imgfs.execution.containers import Containers
from imgfs.execution.records.records import ContainerRecords
from imgfs.failures import Failures
from imgfs.fs.caller import Caller, Waiters
from imgfs.fs.containers.deleting import delete, finish_deletions
from imgfs.fs.subsystems import ContainerSubsystems
from tests.support.containers import fabricated, stopped

NAME = "active/one"


class FakeRest:
    """A fake of rootfs, places and snapshots: snapshots are names in a set. `stop` is called before each step.

    A removal sets `begun`, and continues when `may_end` is set.
    """

    def __init__(self) -> None:
        self.here = {NAME}
        self.begun, self.may_end = trio.Event(), trio.Event()
        self.may_end.set()
        self.stop: Callable[[str], None] = lambda step: None

    @property
    def places(self) -> FakeRest:
        return self

    @property
    def users(self) -> FakeRest:
        return self

    @contextmanager
    def closed(self, *places: str) -> Generator[None]:
        assert set(places) == {f"snapshots/{NAME}/rootfs", f"snapshots/{NAME}/diff"}
        yield

    async def leave(self, id: str, *, for_good: bool) -> None:
        self.stop("leave")

    def find_own(self, id: str) -> object:
        return id if id in self.here else None

    async def remove(self, id: str) -> None:
        self.stop("remove")
        self.begun.set()
        await self.may_end.wait()
        self.here.remove(id)


class FakeSubsystems:
    """The part of ContainerSubsystems that a deletion needs."""

    def __init__(self, state: Path, nursery: trio.Nursery) -> None:
        self.records = ContainerRecords(state)
        self.containers = Containers(self.records, keep_deleted=60)
        self.rest = FakeRest()
        self.rootfs = self.snapshots = self.rest
        self.failures = Failures()
        self.works: Flights[None] = Flights(nursery, grace=0, memory=0)

    @property
    def value(self) -> ContainerSubsystems:
        return cast(ContainerSubsystems, self)

    def add(self, **changes: object) -> None:
        """A container that ended a minute ago."""
        record = fabricated(self.records, "one", stopped(3), **changes)
        long_ago = time.time() - 60
        os.utime(record.path / "status.json", (long_ago, long_ago))

    async def delete(self) -> None:
        await delete(self.value, "one", Caller(0, 0, Waiters(trio.Event())))

    def left(self) -> tuple[bool, bool, bool]:
        """Whether the record, the snapshot and the record of the deletion exist."""
        return bool(self.records.ids()), bool(self.rest.here), bool(self.containers.deleted.ids())


@pytest.fixture
def scene(tmp_path: Path, nursery: trio.Nursery) -> FakeSubsystems:
    made = FakeSubsystems(tmp_path, nursery)
    made.add()
    return made


def failing(step: str, error: ImgfsError) -> Callable[[str], None]:
    def stop(name: str) -> None:
        if name == step:
            raise error

    return stop


async def test_all_goes_but_how_it_ended(scene: FakeSubsystems) -> None:
    seen: list[tuple[str, tuple[bool, bool, bool]]] = []
    scene.rest.stop = lambda step: seen.append((step, scene.left()))
    await scene.delete()
    assert seen == [("leave", (True, True, False)), ("remove", (True, True, True))]
    assert scene.left() == (False, False, True)


@pytest.mark.parametrize(
    ("step", "error"), [("leave", Busy("somebody is in it")), ("remove", StorageFailed("the disk refused"))]
)
async def test_where_the_snapshot_stays_all_is_as_before_and_the_reason_told(
    scene: FakeSubsystems, step: str, error: ImgfsError
) -> None:
    scene.rest.stop = failing(step, error)
    with pytest.raises(type(error)):
        await scene.delete()
    assert scene.left() == (True, True, False)
    assert scene.failures.get("containers/one") == error.message
    scene.rest.stop = lambda _: None
    await scene.delete()
    assert scene.left() == (False, False, True)
    assert scene.failures.get("containers/one") is None


async def test_a_container_that_has_just_ended_is_let_go_of_by_the_kernel_in_a_moment(scene: FakeSubsystems) -> None:
    os.utime(scene.records.find("one").path / "status.json")
    busy = [Busy("the kernel is not done")] * 2

    def stop(step: str) -> None:
        if step == "leave" and busy:
            raise busy.pop()

    scene.rest.stop = stop
    await scene.delete()
    assert scene.left() == (False, False, True)


@pytest.mark.parametrize("is_snapshot_gone", [False, True])
async def test_a_start_ends_what_a_killed_daemon_began(scene: FakeSubsystems, is_snapshot_gone: bool) -> None:
    async with scene.containers.ended("one"):
        await scene.containers.keep("one")
    if is_snapshot_gone:
        scene.rest.here.clear()
    await finish_deletions(scene.value)
    assert scene.left() == (False, False, True)


async def test_a_start_leaves_what_nobody_deleted(scene: FakeSubsystems) -> None:
    await finish_deletions(scene.value)
    assert scene.left() == (True, True, False)


async def test_one_that_cannot_be_deleted_keeps_no_start_from_going_on(scene: FakeSubsystems) -> None:
    async with scene.containers.ended("one"):
        await scene.containers.keep("one")
    scene.rest.stop = failing("leave", Busy("somebody is in it"))
    await finish_deletions(scene.value)
    assert scene.left() == (True, True, True)


async def test_who_is_interrupted_leaves_a_deletion_that_is_begun_to_its_end(scene: FakeSubsystems) -> None:
    scene.rest.may_end = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.delete)
        await scene.rest.begun.wait()
        nursery.cancel_scope.cancel()
    scene.rest.may_end.set()
    with trio.fail_after(10), pytest.raises(NotFound):
        await scene.delete()  # it waits for the removal in progress
    assert scene.left() == (False, False, True)
