"""Places: one mount each, made once for all concurrent callers, and forgotten only when that mount is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from imgfs.errors import Busy, NotPermitted
from imgfs.rootfs.places import Places
from tests.rootfs.fakes import FakeKernel, Gate

A, B, C = "snapshots/a/rootfs", "snapshots/b/rootfs", "snapshots/c/rootfs"


@pytest.fixture
def places(kernel: FakeKernel, nursery: trio.Nursery) -> Places:
    return Places("/mnt", nursery, kernel)


async def reached(gate: Gate) -> None:
    """Wait until a thread waits at the gate."""
    assert await trio.to_thread.run_sync(gate.reached.wait, 10)


async def test_a_mount_is_made_once(kernel: FakeKernel, places: Places) -> None:
    assert places.path(A) == f"/mnt/{A}"
    assert await places.mount(A, kernel.attach("a"))
    assert not await places.mount(A, kernel.attach("again"))
    assert kernel.mounted == {f"/mnt/{A}": "a"}
    assert (A in places, B in places, len(places), list(places)) == (True, False, 1, [A])


async def test_only_a_second_walk_past_a_mount_is_reported(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    assert [places.passes_again(A, process) for process in (1, 2, 1, 1)] == [False, False, False, True]
    assert not places.passes_again(B, 1)
    await places.unmount(A)
    assert not places.passes_again(A, 1)


async def test_concurrent_callers_wait_for_the_same_mount(kernel: FakeKernel, places: Places) -> None:
    gate = kernel.gates["attach"]
    gate.shut()
    told: list[bool] = []

    async def ask() -> None:
        told.append(await places.mount(A, kernel.attach("a")))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await reached(gate)
        assert places.is_taken(A)
        assert A not in places
        gate.open()
    assert told == [True] * 5
    assert kernel.calls == ["attach a"]


async def test_a_cancelled_caller_does_not_cancel_the_mount(kernel: FakeKernel, places: Places) -> None:
    gate = kernel.gates["attach"]
    gate.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(places.mount, A, kernel.attach("a"))
        await reached(gate)
        nursery.cancel_scope.cancel()
    gate.open()
    assert await places.mount(A, kernel.attach("other")) in (True, False)
    assert kernel.mounted == {f"/mnt/{A}": "a"}


async def test_a_failed_mount_can_be_retried_at_once(kernel: FakeKernel, places: Places) -> None:
    kernel.errors["attach"] = NotPermitted("no")
    with pytest.raises(NotPermitted):
        await places.mount(A, kernel.attach("a"))
    assert not places.is_taken(A)
    kernel.errors.clear()
    assert await places.mount(A, kernel.attach("a"))


async def test_a_mount_in_use_stays(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    kernel.used.add(f"/mnt/{A}")
    with pytest.raises(Busy):
        await places.unmount(A)
    assert A in places
    kernel.used.clear()
    await places.unmount(A)
    assert A not in places
    await places.unmount(A)
    assert len(kernel.calls) == 3


async def test_unmounting_a_mount_in_progress_is_busy(kernel: FakeKernel, places: Places) -> None:
    gate = kernel.gates["attach"]
    gate.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(places.mount, A, kernel.attach("a"))
        await reached(gate)
        with pytest.raises(Busy, match="try again"):
            await places.unmount(A)
        gate.open()
    assert A in places


async def test_closed_places_refuse_mounts_until_they_are_open(kernel: FakeKernel, places: Places) -> None:
    with places.closed(A), places.closed(A, B):
        for place in (A, B):
            with pytest.raises(Busy):
                await places.mount(place, kernel.attach("x"))
        assert await places.mount(C, kernel.attach("c"))
    assert await places.mount(A, kernel.attach("a"))


async def test_an_unmount_by_another_process_is_detected(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    assert not await places.is_gone(A)
    kernel.mounted.clear()
    assert await places.is_gone(A)
    assert not await places.is_gone(A)
    assert await places.mount(A, kernel.attach("a"))
    kernel.mounted.clear()
    await places.unmount(A)
    assert A not in places


async def test_a_mount_unused_between_two_calls_expires(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    await places.mount(B, kernel.attach("b"))
    kernel.used.add(f"/mnt/{B}")
    await places.expire()
    assert list(places) == [A, B]
    await places.expire()
    assert list(places) == [B]
    assert kernel.mounted == {f"/mnt/{B}": "b"}


async def test_a_writable_mount_with_a_copy_stays(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("overlay"))
    await places.mount(B, kernel.attach("erofs"))
    kernel.elsewhere = {f"/mnt/{A}", f"/mnt/{B}"}
    for _ in range(3):
        await places.expire()
    assert list(places) == [A]
    kernel.elsewhere.clear()
    for _ in range(2):
        await places.expire()
    assert list(places) == []


def _expire(places: Places) -> Awaitable[object]:
    return places.expire()


def _unmount(places: Places) -> Awaitable[object]:
    return places.unmount(A)


@pytest.mark.parametrize(("way", "forget"), [("expire", _expire), ("unmount", _unmount)])
async def test_a_mount_made_during_an_unmount_is_not_forgotten(
    kernel: FakeKernel, places: Places, way: str, forget: Callable[[Places], Awaitable[object]]
) -> None:
    await places.mount(A, kernel.attach("old"))
    await places.expire()
    gate = kernel.gates[way]
    gate.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forget, places)
        await reached(gate)
        assert await places.is_gone(A)
        await places.mount(A, kernel.attach("new"))
        gate.open()
    assert A in places
    assert kernel.mounted == {f"/mnt/{A}": "new"}


async def test_clear_unmounts_the_latest_first_and_keeps_mounts_in_use(kernel: FakeKernel, places: Places) -> None:
    for place in (A, B, C):
        await places.mount(place, kernel.attach(place))
    kernel.used.add(f"/mnt/{B}")
    with pytest.raises(Busy):
        await places.clear()
    assert kernel.calls[3:] == [f"unmount /mnt/{place}" for place in (C, B, A)]
    assert list(places) == [B]
    kernel.used.clear()
    await places.clear()
    assert (list(places), kernel.mounted) == ([], {})
