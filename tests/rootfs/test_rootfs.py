"""What is mounted where: the kernel's view, a read-only bind of FUSE's, or an overlay; and what a refusal changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from imgfs.errors import Busy, ImgfsError, Malformed, NoSpace, NotPermitted, TooLarge, Unreachable, Unsupported
from imgfs.kernel.probe import Capability
from imgfs.rootfs.places import PASSING_SECONDS
from imgfs.rootfs.refusals import REFUSED_SECONDS
from imgfs.rootfs.rootfs import BREATH, diff_of, rootfs_of
from imgfs.snapshots.graph import Snapshot
from tests.rootfs.fakes import FakeKernel
from tests.rootfs.scene import ALL, BASE, TOP, Scene

NO_EROFS = Capability("no erofs here")


def shown(kernel: FakeKernel) -> dict[str, str]:
    """What is mounted, by place."""
    return {path.removeprefix("/mnt/"): kind.partition(" ")[0] for path, kind in kernel.mounted.items()}


async def active(scene: Scene, key: str, parent: Snapshot | None = None) -> str:
    """A new active snapshot; its ID."""
    info = await scene.snapshots.prepare(key)
    if parent is not None:
        await scene.snapshots.set_parent(key, parent.chain_id)
    return info.id


async def test_a_chain_is_shown_once_from_its_own_files(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE, TOP)
    assert not scene.rootfs.is_shown(chain)
    assert await scene.rootfs.show(chain)
    assert scene.rootfs.is_shown(chain)
    assert not await scene.rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "erofs"}
    assert kernel.calls[0] == f"erofs {chain.chain_id.hex}.erofs local local"
    assert scene.rootfs.refusal(chain.chain_id) is None


async def test_many_who_ask_build_and_mount_once(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(scene.rootfs.show, chain)
    assert len(kernel.calls) == 2
    assert scene.provider.asked == 1


async def test_a_chain_with_an_image_is_shown_without_its_layers(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    await scene.images.make(await scene.views.get(chain))
    for path in (scene.state / "layers").rglob("tar"):
        path.unlink()
    scene.start()
    scene.provider.error = Unreachable("nobody answers")
    assert await scene.rootfs.is_lazy(chain)
    assert await scene.rootfs.show(chain)
    assert kernel.calls[0] == f"erofs {chain.chain_id.hex}.erofs door"


async def test_what_the_way_of_layers_raises_is_no_refusal(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    scene.provider.error = Unreachable("nobody answers")
    with pytest.raises(Unreachable):
        await scene.rootfs.show(chain)
    assert scene.rootfs.refusal(chain.chain_id) is None
    assert not scene.rootfs.is_shown(chain)
    assert shown(kernel) == {}


async def test_a_refused_chain_stays_in_fuse_and_tells_why(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = NotPermitted("the kernel says no")
    assert await scene.rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
    assert scene.rootfs.refusal(chain.chain_id) == "the kernel says no"
    assert scene.rootfs.is_shown(chain)


@pytest.mark.parametrize("error", [Unsupported("never"), TooLarge("never")], ids=["unsupported", "too large"])
async def test_a_tree_that_erofs_cannot_hold_is_tried_once_a_daemon(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock, error: ImgfsError
) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = error
    for _ in range(3):
        assert await scene.rootfs.show(chain)
        assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
        mock_clock.jump(10 * REFUSED_SECONDS)
        await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
    assert sum(call.startswith("erofs") for call in kernel.calls) == 1
    assert scene.rootfs.refusal(chain.chain_id) == "never"


async def test_what_reads_a_layer_that_the_disk_lost_is_taken_away(kernel: FakeKernel, scene: Scene) -> None:
    lost, other = await scene.chain(BASE, TOP), await scene.chain(BASE)
    for chain in (lost, other):
        assert await scene.rootfs.show(chain)
    scene.nursery.start_soon(scene.rootfs.follow_losses)
    scene.layers.lose(scene.layers.get(TOP.diff_id))
    with trio.fail_after(10):
        while rootfs_of(lost.chain_id) in shown(kernel):
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert shown(kernel) == {rootfs_of(other.chain_id): "erofs"}
    assert scene.views.kept(lost) is None
    assert TOP.diff_id not in scene.layers


async def test_where_not_even_a_bind_is_allowed_the_first_reason_is_told(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    kernel.errors |= {"erofs": Unsupported("no erofs"), "bind": NotPermitted("no bind")}
    assert not await scene.rootfs.show(chain)
    assert scene.rootfs.is_shown(chain)
    assert scene.rootfs.refusal(chain.chain_id) == "no erofs"
    kernel.errors.clear()
    assert not await scene.rootfs.show(chain)
    mock_clock.jump(REFUSED_SECONDS + 1)
    assert await scene.rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}


async def test_a_full_disk_is_tried_again_and_then_nothing_is_told(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = await scene.chain(BASE)

    def full(*_: object) -> None:
        raise NoSpace("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("imgfs.rootfs.metadata.write_file", full)
        assert await scene.rootfs.show(chain)
    assert scene.rootfs.refusal(chain.chain_id) == "disk full"
    for kind, seconds in (("bind", 1), ("erofs", REFUSED_SECONDS)):
        await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
        mock_clock.jump(seconds)
        assert await scene.rootfs.show(chain)
        assert shown(kernel) == {rootfs_of(chain.chain_id): kind}
    assert scene.rootfs.refusal(chain.chain_id) is None


async def test_an_image_that_the_kernel_calls_broken_is_removed(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = Malformed("broken")
    await scene.rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
    assert not scene.images.path(chain.chain_id).exists()


async def test_without_erofs_the_fuse_view_is_bound_read_only(kernel: FakeKernel, scene: Scene) -> None:
    rootfs = scene.start(replace(ALL, erofs=NO_EROFS, overlay_over_erofs=NO_EROFS))
    chain = await scene.chain(BASE)
    assert (rootfs.is_kernel, rootfs.is_mounting) == (False, True)
    assert not await rootfs.is_lazy(chain)
    assert await rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
    assert kernel.calls[0] == f"bind /mnt/{rootfs_of(chain.chain_id)}"
    assert rootfs.refusal(chain.chain_id) is None


async def test_a_chain_is_bound_for_as_long_as_the_bind_is_there(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    place = rootfs_of(chain.chain_id)
    kernel.errors["erofs"] = Unsupported("no erofs")
    assert not scene.rootfs.is_bound(chain)
    await scene.rootfs.show(chain)
    assert scene.rootfs.is_bound(chain)
    await scene.rootfs.places.unmount(place)
    assert not scene.rootfs.is_bound(chain)


async def test_a_chain_that_the_kernel_shows_after_all_is_bound_no_more(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = NotPermitted("not now")
    await scene.rootfs.show(chain)
    await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
    kernel.errors.clear()
    mock_clock.jump(REFUSED_SECONDS + 1)
    await scene.rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "erofs"}
    assert not scene.rootfs.is_bound(chain)


async def test_an_ordinary_user_mounts_nothing(kernel: FakeKernel, scene: Scene) -> None:
    rootfs = scene.start(is_root=False)
    chain = await scene.chain(BASE)
    assert (rootfs.is_kernel, rootfs.is_mounting, rootfs.is_shown(chain)) == (False, False, True)
    assert not await rootfs.show(chain)
    assert kernel.calls == []
    with pytest.raises(NotPermitted, match="as root"):
        await rootfs.show_changes(await active(scene, "mine"))


async def test_the_first_reader_of_a_new_image_has_a_breath(
    kernel: FakeKernel, scene: Scene, autojump_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    scene.rootfs.prepare(chain)
    scene.rootfs.prepare(chain)
    assert scene.rootfs.is_shown(chain)
    assert not await scene.rootfs.show(chain)
    await trio.sleep(BREATH * 0.9)
    assert kernel.calls == []
    assert await trio.to_thread.run_sync(kernel.gates["attach"].reached.wait, 10)
    await scene.rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "erofs"}
    assert len(kernel.calls) == 2


async def test_an_active_snapshot_lies_on_the_same_erofs_as_the_view(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    id = await active(scene, "key", chain)
    assert await scene.rootfs.show_user(id)
    assert not await scene.rootfs.show_user(id)
    await scene.rootfs.show(chain)
    assert shown(kernel) == {rootfs_of(id): "overlay", rootfs_of(chain.chain_id): "erofs"}
    assert sum(call.startswith("erofs") for call in kernel.calls) == 1
    assert scene.snapshots.stat(id).used


async def test_an_active_snapshot_lies_on_fuse_where_erofs_is_refused(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = NotPermitted("no")
    id = await active(scene, "key", chain)
    assert await scene.rootfs.show_user(id)
    assert f"overlay /mnt/{rootfs_of(chain.chain_id)}" in kernel.calls


async def test_an_active_snapshot_of_nothing_lies_on_the_empty_directory(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    assert await scene.rootfs.show_user(id)
    assert kernel.calls[0] == f"overlay {scene.snapshots.empty}"


async def test_writable_snapshots_are_refused_where_overlays_are(kernel: FakeKernel, scene: Scene) -> None:
    rootfs = scene.start(replace(ALL, overlay=Capability("no overlay here")))
    id = await active(scene, "key")
    with pytest.raises(NotPermitted, match="no overlay here"):
        await rootfs.show_user(id)
    assert kernel.calls == []


async def test_changes_are_a_read_only_bind_and_both_are_left(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    await scene.rootfs.show_user(id)
    assert await scene.rootfs.show_changes(id)
    assert not await scene.rootfs.show_changes(id)
    assert shown(kernel) == {rootfs_of(id): "overlay", diff_of(id): "bind"}
    kernel.used.add(f"/mnt/{rootfs_of(id)}")
    with pytest.raises(Busy):
        await scene.rootfs.leave(id)
    kernel.used.clear()
    await scene.rootfs.leave(id)
    assert shown(kernel) == {}


async def test_what_is_mounted_elsewhere_too_is_not_left(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    await scene.rootfs.show_user(id)
    kernel.elsewhere.add(f"/mnt/{rootfs_of(id)}")
    with pytest.raises(Busy, match="elsewhere"):
        await scene.rootfs.leave(id)
    assert shown(kernel) == {rootfs_of(id): "overlay"}
    kernel.elsewhere.clear()
    await scene.rootfs.leave(id)
    assert shown(kernel) == {}


async def test_a_copy_in_passing_is_waited_for(
    kernel: FakeKernel, scene: Scene, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    id = await active(scene, "key")
    await scene.rootfs.show_user(id)
    kernel.elsewhere.add(f"/mnt/{rootfs_of(id)}")

    async def start() -> None:
        await trio.sleep(PASSING_SECONDS / 2)
        kernel.elsewhere.clear()

    nursery.start_soon(start)
    await scene.rootfs.leave(id)
    assert shown(kernel) == {}


async def test_a_mount_that_somebody_took_is_made_again(kernel: FakeKernel, scene: Scene) -> None:
    id = await active(scene, "key")
    await scene.rootfs.show_user(id)
    await scene.rootfs.show_changes(id)
    kernel.mounted.clear()
    assert await scene.rootfs.show_user(id)
    assert await scene.rootfs.show_changes(id)


async def test_a_chain_is_opened_again_after_its_last_user_has_gone(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    await scene.rootfs.show(chain)
    await scene.rootfs.show_user(await active(scene, "key", chain))
    await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
    await scene.rootfs.show(chain)
    assert sum(call.startswith("erofs") for call in kernel.calls) == 1
    await scene.rootfs.clear()
    assert shown(kernel) == {}
    await scene.rootfs.show(chain)
    assert sum(call.startswith("erofs") for call in kernel.calls) == 2


async def test_a_chain_that_is_about_to_be_used_is_not_closed(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    id = await active(scene, "key", chain)
    shown_now: list[bool] = []

    async def ask() -> None:
        shown_now.append(await scene.rootfs.show_user(id))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while not shown_now:
            await scene.rootfs.clear()  # closes what nobody uses, at every step between opening and mounting
            await trio.lowlevel.checkpoint()
    assert shown_now == [True]
    assert any(call.startswith("overlay erofs") for call in kernel.calls)


async def test_idle_mounts_go_for_ever_until_cancelled(
    kernel: FakeKernel, scene: Scene, autojump_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    await scene.rootfs.show(chain)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.rootfs.expire, 5.0)
        while kernel.mounted:  # noqa: ASYNC110 - the threads behind it take real time
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert not scene.rootfs.is_shown(chain)
    assert await scene.rootfs.show(chain)
