"""Mounts end and are made again: after lost layers, unmounts by other processes, idle time, and at the daemon's end."""

from __future__ import annotations

import trio
import trio.testing
from trio.testing import MockClock

from imgfs.rootfs.places import rootfs_of
from tests.rootfs.fakes import FakeKernel
from tests.rootfs.looks import active, shown
from tests.rootfs.scene import BASE, TOP, Scene


async def test_mounts_of_a_lost_layer_are_unmounted(kernel: FakeKernel, scene: Scene) -> None:
    lost, other = await scene.chain(BASE, TOP), await scene.chain(BASE)
    for chain in (lost, other):
        assert await scene.rootfs.chains.show(chain)
    scene.nursery.start_soon(scene.rootfs.follow_losses)
    scene.layers.lose(scene.layers.get(TOP.diff_id))
    with trio.fail_after(10):
        while rootfs_of(lost.chain_id) in shown(kernel):
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert shown(kernel) == {rootfs_of(other.chain_id): "erofs"}
    assert scene.views.kept(lost) is None
    assert TOP.diff_id not in scene.layers


async def test_a_mount_that_another_process_unmounted_is_made_again(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    await scene.rootfs.users.show(id)
    await scene.rootfs.users.show_changes(id)
    kernel.mounted.clear()
    assert await scene.rootfs.users.show(id)
    assert await scene.rootfs.users.show_changes(id)


async def test_a_chain_is_opened_again_after_its_last_user_has_gone(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    await scene.rootfs.chains.show(chain)
    await scene.rootfs.users.show(await active(scene, "key", chain))
    await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
    await scene.rootfs.chains.show(chain)
    assert sum(call.startswith("erofs") for call in kernel.calls) == 1
    await scene.rootfs.clear()
    assert shown(kernel) == {}
    await scene.rootfs.chains.show(chain)
    assert sum(call.startswith("erofs") for call in kernel.calls) == 2


async def test_a_chain_that_is_about_to_be_used_is_not_closed(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    id = await active(scene, "key", chain)
    shown_now: list[bool] = []

    async def ask() -> None:
        shown_now.append(await scene.rootfs.users.show(id))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while not shown_now:
            await scene.rootfs.clear()  # closes unused mounts, at every step between opening and mounting
            await trio.lowlevel.checkpoint()
    assert shown_now == [True]
    assert any(call.startswith("overlay erofs") for call in kernel.calls)


async def test_idle_mounts_are_unmounted_until_cancelled(
    kernel: FakeKernel, scene: Scene, autojump_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    await scene.rootfs.chains.show(chain)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.rootfs.expire, 5.0)
        while kernel.mounted:  # noqa: ASYNC110 - the threads behind it take real time
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert not scene.rootfs.chains.is_shown(chain)
    assert await scene.rootfs.chains.show(chain)
