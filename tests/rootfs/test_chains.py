"""How a chain is shown: a kernel mount, a read-only bind of its FUSE view, or neither; and the effects of a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from imgfs.errors import ImgfsError, Malformed, NoSpace, NotPermitted, TooLarge, Unreachable, Unsupported
from imgfs.kernel.probe import Capability
from imgfs.rootfs.chains import BREATH
from imgfs.rootfs.places import rootfs_of
from imgfs.rootfs.refusals import REFUSED_SECONDS
from tests.rootfs.fakes import FakeKernel
from tests.rootfs.looks import active, shown
from tests.rootfs.scene import ALL, BASE, TOP, Scene

NO_EROFS = Capability("no erofs here")


async def test_a_chain_is_shown_once_from_its_own_files(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE, TOP)
    assert not scene.rootfs.chains.is_shown(chain)
    assert await scene.rootfs.chains.show(chain)
    assert scene.rootfs.chains.is_shown(chain)
    assert not await scene.rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "erofs"}
    assert kernel.calls[0] == f"erofs {chain.chain_id.hex}.erofs local local"
    assert scene.rootfs.chains.refusal(chain.chain_id) is None


async def test_concurrent_callers_build_and_mount_once(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(scene.rootfs.chains.show, chain)
    assert len(kernel.calls) == 2
    assert scene.provider.asked < 5, "to know how large it is, and to merge it"


async def test_a_chain_with_an_image_is_shown_without_its_layers(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    await scene.images.make(await scene.views.get(chain))
    for path in (scene.state / "layers").rglob("tar"):
        path.unlink()
    scene.start()
    scene.provider.error = Unreachable("no answer")
    assert await scene.rootfs.chains.is_lazy(chain)
    assert await scene.rootfs.chains.show(chain)
    assert kernel.calls[0] == f"erofs {chain.chain_id.hex}.erofs door"


async def test_an_error_of_fetching_layers_is_not_a_refusal(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    scene.provider.error = Unreachable("no answer")
    with pytest.raises(Unreachable):
        await scene.rootfs.chains.show(chain)
    assert scene.rootfs.chains.refusal(chain.chain_id) is None
    assert not scene.rootfs.chains.is_shown(chain)
    assert shown(kernel) == {}


async def test_a_refused_chain_stays_in_fuse_with_a_reason(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = NotPermitted("the kernel says no")
    assert await scene.rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
    assert scene.rootfs.chains.refusal(chain.chain_id) == "the kernel says no"
    assert scene.rootfs.chains.is_shown(chain)


@pytest.mark.parametrize("error", [Unsupported("never"), TooLarge("never")], ids=["unsupported", "too large"])
async def test_a_tree_that_erofs_cannot_hold_is_tried_once_per_daemon(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock, error: ImgfsError
) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = error
    for _ in range(3):
        assert await scene.rootfs.chains.show(chain)
        assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
        mock_clock.jump(10 * REFUSED_SECONDS)
        await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
    assert sum(call.startswith("erofs") for call in kernel.calls) == 1
    assert scene.rootfs.chains.refusal(chain.chain_id) == "never"


async def test_if_a_bind_is_refused_too_the_first_reason_is_reported(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    kernel.errors |= {"erofs": Unsupported("no erofs"), "bind": NotPermitted("no bind")}
    assert not await scene.rootfs.chains.show(chain)
    assert scene.rootfs.chains.is_shown(chain)
    assert scene.rootfs.chains.refusal(chain.chain_id) == "no erofs"
    kernel.errors.clear()
    assert not await scene.rootfs.chains.show(chain)
    mock_clock.jump(REFUSED_SECONDS + 1)
    assert await scene.rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}


async def test_a_full_disk_is_retried_and_success_clears_the_reason(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = await scene.chain(BASE)

    def full(*_: object) -> None:
        raise NoSpace("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("imgfs.rootfs.metadata.write_file", full)
        assert await scene.rootfs.chains.show(chain)
    assert scene.rootfs.chains.refusal(chain.chain_id) == "disk full"
    for kind, seconds in (("bind", 1), ("erofs", REFUSED_SECONDS)):
        await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
        mock_clock.jump(seconds)
        assert await scene.rootfs.chains.show(chain)
        assert shown(kernel) == {rootfs_of(chain.chain_id): kind}
    assert scene.rootfs.chains.refusal(chain.chain_id) is None


async def test_an_image_that_the_kernel_calls_broken_is_removed(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = Malformed("broken")
    await scene.rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
    assert not scene.images.path(chain.chain_id).exists()


async def test_without_erofs_the_fuse_view_is_bound_read_only(kernel: FakeKernel, scene: Scene) -> None:
    rootfs = scene.start(replace(ALL, erofs=NO_EROFS, overlay_over_erofs=NO_EROFS))
    chain = await scene.chain(BASE)
    assert (rootfs.chains.is_kernel, rootfs.chains.is_mounting) == (False, True)
    assert not await rootfs.chains.is_lazy(chain)
    assert await rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "bind"}
    assert kernel.calls[0] == f"bind /mnt/{rootfs_of(chain.chain_id)}"
    assert rootfs.chains.refusal(chain.chain_id) is None


async def test_a_chain_is_bound_while_its_bind_is_mounted(kernel: FakeKernel, scene: Scene) -> None:
    chain = await scene.chain(BASE)
    place = rootfs_of(chain.chain_id)
    kernel.errors["erofs"] = Unsupported("no erofs")
    assert not scene.rootfs.chains.is_bound(chain)
    await scene.rootfs.chains.show(chain)
    assert scene.rootfs.chains.is_bound(chain)
    await scene.rootfs.places.unmount(place)
    assert not scene.rootfs.chains.is_bound(chain)


async def test_a_bind_ends_when_the_kernel_can_mount_the_chain(
    kernel: FakeKernel, scene: Scene, mock_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    kernel.errors["erofs"] = NotPermitted("not now")
    await scene.rootfs.chains.show(chain)
    await scene.rootfs.places.unmount(rootfs_of(chain.chain_id))
    kernel.errors.clear()
    mock_clock.jump(REFUSED_SECONDS + 1)
    await scene.rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "erofs"}
    assert not scene.rootfs.chains.is_bound(chain)


async def test_an_ordinary_user_mounts_nothing(kernel: FakeKernel, scene: Scene) -> None:
    rootfs = scene.start(is_root=False)
    chain = await scene.chain(BASE)
    assert (rootfs.chains.is_kernel, rootfs.chains.is_mounting, rootfs.chains.is_shown(chain)) == (False, False, True)
    assert not await rootfs.chains.show(chain)
    assert kernel.calls == []
    with pytest.raises(NotPermitted, match="as root"):
        await rootfs.users.show_changes(await active(scene, "mine"))


async def test_after_clear_no_prepared_chain_is_mounted(
    kernel: FakeKernel, scene: Scene, autojump_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    scene.rootfs.chains.prepare(chain)
    await scene.rootfs.clear()
    await trio.sleep(2 * BREATH)
    assert kernel.calls == []
    assert not scene.rootfs.chains.is_shown(chain)
    assert await scene.rootfs.chains.show(chain)


async def test_mounting_is_delayed_for_the_first_reader_of_a_new_image(
    kernel: FakeKernel, scene: Scene, autojump_clock: MockClock
) -> None:
    chain = await scene.chain(BASE)
    scene.rootfs.chains.prepare(chain)
    scene.rootfs.chains.prepare(chain)
    assert scene.rootfs.chains.is_shown(chain)
    assert not await scene.rootfs.chains.show(chain)
    await trio.sleep(BREATH * 0.9)
    assert kernel.calls == []
    assert await trio.to_thread.run_sync(kernel.gates["attach"].reached.wait, 10)
    await scene.rootfs.chains.show(chain)
    assert shown(kernel) == {rootfs_of(chain.chain_id): "erofs"}
    assert len(kernel.calls) == 2
