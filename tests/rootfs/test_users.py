"""How users' snapshots are mounted and unmounted: lower layers, refusals, Busy while a copy exists."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from imgfs.errors import Busy, NotPermitted
from imgfs.kernel.probe import Capability
from imgfs.rootfs.places import PASSING_SECONDS, diff_of, rootfs_of
from tests.rootfs.fakes import FakeKernel
from tests.rootfs.looks import active, shown
from tests.rootfs.scene import ALL, BASE, Scene

NO_EROFS = Capability("no erofs here")


async def test_an_active_snapshot_shares_the_erofs_of_the_view(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    id = await active(scene, "key", chain)
    assert await scene.rootfs.users.show(id)
    assert not await scene.rootfs.users.show(id)
    await scene.rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(id): "overlay", rootfs_of(chain.chain_id): "erofs"}
    assert sum(call.startswith("erofs") for call in kernel.calls) == 1
    assert scene.snapshots.stat(id).used


async def test_an_active_snapshot_is_on_fuse_if_erofs_is_refused(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = NotPermitted("no")
    id = await active(scene, "key", chain)
    assert await scene.rootfs.users.show(id)
    assert f"overlay /mnt/{rootfs_of(chain.chain_id)}" in kernel.calls


async def test_an_active_snapshot_without_a_parent_is_on_the_empty_directory(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    assert await scene.rootfs.users.show(id)
    assert kernel.calls[0] == f"overlay {scene.snapshots.empty}"


async def test_writable_snapshots_need_overlays(kernel: FakeKernel, scene: Scene) -> None:
    rootfs = scene.start(replace(ALL, overlay=Capability("no overlay here")))
    id = await active(scene, "key")
    with pytest.raises(NotPermitted, match="no overlay here"):
        await rootfs.users.show(id)
    assert kernel.calls == []


async def test_changes_are_a_read_only_bind_and_both_are_unmounted(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    await scene.rootfs.users.show(id)
    assert await scene.rootfs.users.show_changes(id)
    assert not await scene.rootfs.users.show_changes(id)
    assert shown(kernel) == {rootfs_of(id): "overlay", diff_of(id): "bind"}
    kernel.used.add(f"/mnt/{rootfs_of(id)}")
    with pytest.raises(Busy):
        await scene.rootfs.users.leave(id)
    kernel.used.clear()
    await scene.rootfs.users.leave(id)
    assert shown(kernel) == {}


async def test_a_rootfs_with_a_copy_is_not_unmounted(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    await scene.rootfs.users.show(id)
    kernel.elsewhere.add(f"/mnt/{rootfs_of(id)}")
    with pytest.raises(Busy, match="elsewhere"):
        await scene.rootfs.users.leave(id)
    assert shown(kernel) == {rootfs_of(id): "overlay"}
    kernel.elsewhere.clear()
    await scene.rootfs.users.leave(id)
    assert shown(kernel) == {}


async def test_a_short_lived_copy_is_waited_for(
    kernel: FakeKernel, scene: Scene, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    id = await active(scene, "key")
    await scene.rootfs.users.show(id)
    kernel.elsewhere.add(f"/mnt/{rootfs_of(id)}")

    async def start() -> None:
        await trio.sleep(PASSING_SECONDS / 2)
        kernel.elsewhere.clear()

    nursery.start_soon(start)
    await scene.rootfs.users.leave(id)
    assert shown(kernel) == {}
