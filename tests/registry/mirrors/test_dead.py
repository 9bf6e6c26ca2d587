"""Hosts that do not answer: they are asked last for a while, and are still asked if the other hosts fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import TimedOut, Unreachable
from imgfs.registry.client import Registry
from imgfs.registry.hosts.health import DOWN_SECONDS
from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.mirrors.hosts import HOST, kill
from tests.registry.scene import BLOB, Scene
from tests.support.programs import free_port


async def test_a_dead_mirror_is_asked_once_and_then_after_a_while_by_one(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    for _ in range(5):
        assert await scene.read() == BLOB
    assert first.requests() == 1
    scene.clock.jump(DOWN_SECONDS + 1)
    for _ in range(5):
        assert await scene.read() == BLOB
    assert first.requests() == 2
    scene.clock.jump(DOWN_SECONDS + 1)
    assert await scene.read() == BLOB
    assert first.requests() == 2, "it is left alone for longer each time"


async def test_a_mirror_that_is_back_is_asked_first_again(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry
) -> None:
    kill(first)
    await scene.read()
    first.reset()
    scene.clock.jump(DOWN_SECONDS + 1)
    for _ in range(3):
        await scene.read()
    assert first.requests() == 3


async def test_many_failures_at_once_are_one(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(scene.read)
    asked = first.requests()
    scene.clock.jump(DOWN_SECONDS + 1)
    await scene.read()
    assert first.requests() == asked + 1


async def test_the_dead_are_asked_when_the_living_fail(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    await scene.read()
    first.reset()
    for fake in (second, scene.fake):
        fake.fault(faults.status(500), times=None)
    assert await scene.read() == BLOB
    assert first.requests() == 1


async def test_a_mirror_that_asks_for_rest_gets_it(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.status(429, Retry_After="50"))
    await scene.read()
    scene.clock.jump(49)
    await scene.read()
    assert (first.requests(), second.requests()) == (1, 2)
    scene.clock.jump(2)
    await scene.read()
    assert first.requests() == 2


async def test_nobody_listens_and_everything_is_told_soon(mock_clock: MockClock, tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    (tmp_path / HOST).mkdir()
    hosts = "".join(f'[host."http://127.0.0.1:{port}"]\n' for port in ports[1:])
    (tmp_path / HOST / "hosts.toml").write_text(f'server = "http://127.0.0.1:{ports[0]}"\n{hosts}')
    async with Registry(hosts_path=[tmp_path], sleep=_no_sleep) as registry:
        with FakeRegistry() as anybody:
            reference = Scene(mock_clock, anybody, host=HOST).reference
        with pytest.raises(Unreachable) as caught:
            await registry.manifest(reference)
    assert [f"127.0.0.1:{port}" in caught.value.message for port in ports] == [True] * 3


async def test_silent_hosts_are_given_up_within_two_minutes(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    fakes = (first, second, scene.fake)
    for fake in fakes:
        fake.fault(faults.stall(), times=None)
    before = mock_clock.current_time()
    async with trio.open_nursery() as nursery:
        for fake in fakes:
            nursery.start_soon(_pass_time_at, Scene(mock_clock, fake))
        with pytest.raises(TimedOut):
            await scene.ask("manifest")
        nursery.cancel_scope.cancel()
    assert mock_clock.current_time() - before <= 120


async def _pass_time_at(scene: Scene) -> None:
    async with scene.registry, scene.impatience(31):
        await trio.sleep_forever()


async def test_the_counters_tell_each_host_apart(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.status(429, Retry_After="5"))
    await scene.read()
    hosts = scene.registry.statistics().hosts
    assert (hosts[first.host].requests, hosts[first.host].failures) == ({"blob": 1}, {"RateLimited": 1})
    assert (hosts[first.host].pauses, hosts[first.host].retries) == (1, 0)
    assert (hosts[second.host].received, hosts[second.host].failures) == (len(BLOB), {})
    assert hosts[second.host].sources == {"mirror": len(BLOB)}


async def _no_sleep(seconds: float) -> None:
    await trio.lowlevel.checkpoint()
