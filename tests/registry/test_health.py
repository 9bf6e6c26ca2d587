"""The record of hosts that failed: what it contains, for how long, and for how many hosts."""

from __future__ import annotations

from trio.testing import MockClock

from imgfs.registry.hosts.health import DOWN_MAX, DOWN_SECONDS, KEPT_MAX, SHUNNED_SECONDS, Health


async def test_a_host_that_fails_again_is_down_for_twice_as_long_up_to_a_limit(mock_clock: MockClock) -> None:
    health, seconds = Health(), DOWN_SECONDS
    while seconds < DOWN_MAX:
        health.failed("a", mock_clock.current_time())
        mock_clock.jump(seconds - 0.1)
        assert health.is_down("a")
        mock_clock.jump(0.2)
        assert not health.is_down("a")
        seconds *= 2
    health.failed("a", mock_clock.current_time())
    mock_clock.jump(DOWN_MAX + 0.1)
    assert not health.is_down("a")


async def test_a_host_that_answers_is_not_down_any_more(mock_clock: MockClock) -> None:
    health = Health()
    health.failed("a", mock_clock.current_time())
    health.well("a")
    assert not health.is_down("a")


async def test_of_too_many_dead_hosts_the_latest_are_kept(mock_clock: MockClock) -> None:
    health = Health()
    for number in range(10 * KEPT_MAX):
        health.failed(f"{number}.example", mock_clock.current_time())
    known = [number for number in range(10 * KEPT_MAX) if health.is_down(f"{number}.example")]
    assert KEPT_MAX // 4 < len(known) <= KEPT_MAX
    assert known[-1] == 10 * KEPT_MAX - 1


async def test_of_too_many_wrong_blobs_the_latest_are_kept(mock_clock: MockClock) -> None:
    health = Health()
    for number in range(2 * KEPT_MAX):
        health.shun("a", str(number))
    known = [number for number in range(2 * KEPT_MAX) if health.is_shunned("a", str(number))]
    assert KEPT_MAX // 4 < len(known) <= KEPT_MAX
    assert known[-1] == 2 * KEPT_MAX - 1
    mock_clock.jump(SHUNNED_SECONDS)
    assert not health.is_shunned("a", str(known[-1]))
