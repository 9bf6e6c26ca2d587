"""Mounts in other namespaces: one clone per namespace that sees the place, unmounted before the mount here."""

from __future__ import annotations

import pytest
import trio

from imgfs.errors import NotPermitted
from imgfs.kernel.mounts import MountEntry
from imgfs.rootfs.namespaces import REFUSED_SECONDS
from imgfs.rootfs.places import Places
from tests.rootfs.fakes import FakeKernel

A, B = "snapshots/a/rootfs", "snapshots/b/rootfs"
PROCESS = 7


@pytest.fixture
def places(kernel: FakeKernel, nursery: trio.Nursery) -> Places:
    """Places without mounts. PROCESS sees the tree at /srv."""
    kernel.mounted["/mnt"] = "fuse.imgfs"
    kernel.seen[PROCESS] = [MountEntry("/srv", "fuse.imgfs", "", (0, 0), 5, 1)]
    return Places("/mnt", nursery, kernel)


def paths(kernel: FakeKernel) -> list[str]:
    return [one.mountpoint for one in kernel.seen[PROCESS][1:]]


async def test_a_clone_is_mounted_once_where_the_process_sees_the_place(kernel: FakeKernel, places: Places) -> None:
    assert not await places.mount_there(A, PROCESS)
    await places.mount(A, kernel.attach("a"))
    assert not await places.is_mounted_there(A, PROCESS)
    assert await places.mount_there(A, PROCESS)
    assert paths(kernel) == [f"/srv/{A}"]
    assert await places.is_mounted_there(A, PROCESS)
    assert not await places.mount_there(A, PROCESS)
    assert not await places.mount_there(B, PROCESS)


async def test_the_clone_is_unmounted_before_the_mount(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    await places.mount_there(A, PROCESS)
    await places.unmount(A)
    assert kernel.calls[-2:] == [f"unmount-there /srv/{A}", f"unmount /mnt/{A}"]
    assert paths(kernel) == []


async def test_a_mount_with_a_clone_does_not_expire(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    await places.mount_there(A, PROCESS)
    kernel.errors["unmount-there"] = NotPermitted("in use")
    for _ in range(3):
        await places.expire()
    assert A in places
    kernel.errors.clear()
    for _ in range(3):
        await places.expire()
    assert A not in places


async def test_at_the_end_clones_are_detached(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    await places.mount_there(A, PROCESS)
    await places.clear()
    assert f"detach-there /srv/{A}" in kernel.calls


async def test_a_refusing_namespace_is_retried_after_a_delay(
    kernel: FakeKernel, places: Places, autojump_clock: trio.testing.MockClock
) -> None:
    await places.mount(A, kernel.attach("a"))
    kernel.errors["attach-there"] = NotPermitted("no")
    for _ in range(3):
        assert not await places.mount_there(A, PROCESS)
    assert kernel.calls.count(f"attach-there /srv/{A}") == 1
    await trio.sleep(REFUSED_SECONDS)
    kernel.errors.clear()
    assert await places.mount_there(A, PROCESS)


async def test_no_clone_for_an_exited_process_or_one_without_the_tree(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    assert not await places.mount_there(A, 99)
    kernel.seen[PROCESS] = []
    assert not await places.mount_there(A, PROCESS)
    assert not await places.is_mounted_there(A, PROCESS)


async def test_no_clone_is_mounted_while_the_place_is_closed(kernel: FakeKernel, places: Places) -> None:
    await places.mount(A, kernel.attach("a"))
    with places.closed(A):
        assert not await places.mount_there(A, PROCESS)
