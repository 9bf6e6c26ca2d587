"""A blob whose transfer from one host breaks: the next host continues at the byte that was reached."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import Unreachable
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from tests.registry.mirrors.hosts import kill
from tests.registry.scene import BLOB, Scene


async def test_a_blob_goes_on_at_the_same_byte_of_the_next_host(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000))
    second.fault(faults.cut_at(2000))
    assert await scene.read() == BLOB
    size = len(BLOB) - 1
    assert [one.range for one in (*first.log, *second.log, *scene.fake.log)] == [
        None, f"bytes=3000-{size}", f"bytes=5000-{size}",
    ]  # fmt: skip
    assert "if-range" not in second.log[0].headers
    assert scene.slept == []


@pytest.mark.parametrize(
    "action",
    [
        faults.reset_at(3000),
        lambda reply: reply.wire("Transfer-Encoding: chunked", b"bb8\r\n" + bytes(reply.body)[:3000] + b"\r\nzz\r\n"),
        lambda reply: reply.wire(f"Content-Length: {len(BLOB)}", bytes(reply.body)[:3000]),
    ],
    ids=["reset", "bad chunk", "closed"],
)
async def test_however_a_blob_breaks_off_the_next_host_goes_on_at_the_byte_that_came(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, action: Action
) -> None:
    first.fault(action)
    assert await scene.read() == BLOB
    came = scene.registry.statistics().hosts[first.host].received
    assert 0 < came <= 3000
    assert [one.range for one in second.log] == [f"bytes={came}-{len(BLOB) - 1}"]
    assert scene.fake.requests() == 0


async def test_a_mirror_that_cuts_once_is_asked_again_when_the_others_are_dead(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000))
    kill(second)
    kill(scene.fake)
    assert await scene.read() == BLOB
    assert [one.range for one in first.log] == [None, f"bytes=3000-{len(BLOB) - 1}"]


async def test_who_gave_a_part_is_asked_for_the_rest_although_the_registry_has_it_no_more(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000))
    for fake in (second, scene.fake):
        fake.fault(faults.status(404), times=None)
    assert await scene.read() == BLOB


async def test_hosts_that_all_cut_again_and_again_give_the_blob_in_the_end(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    for fake in (first, second, scene.fake):
        fake.fault(faults.cut_at(1500), times=None)
    assert await scene.read() == BLOB


async def test_hosts_that_all_give_nothing_are_given_up(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    for fake in (first, second, scene.fake):
        fake.fault(faults.cut_at(0), times=None)
    with pytest.raises(Unreachable, match=scene.fake.host):
        await scene.read()
    assert (first.requests(), second.requests(), scene.fake.requests()) == (1, 1, 3)


async def test_a_stall_goes_on_elsewhere_and_the_stalled_is_asked_last(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    stalls = Scene(scene.clock, first)
    first.fault(faults.stall(after=4000), times=None)
    async with stalls.registry, stalls.impatience(31):
        assert await scene.read() == BLOB
    assert await scene.read() == BLOB
    assert (first.requests(), second.requests()) == (1, 2)


@pytest.mark.parametrize("action", [faults.range_ignored(), faults.content_range("bytes 0-1/2"), faults.status(416)])
async def test_who_cannot_go_on_in_the_middle_is_passed_over(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, action: Action
) -> None:
    first.fault(faults.cut_at(len(BLOB) - 100))
    second.fault(action, times=None)
    assert await scene.read() == BLOB


async def test_one_who_sends_too_much_is_left_before_the_last_byte(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.longer(10), times=None)
    assert await scene.read() == BLOB
    assert second.requests() == 1


async def test_leaving_a_blob_gives_its_place_back_at_every_host(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000), times=None)
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(scene.read)
    assert await scene.read() == BLOB
