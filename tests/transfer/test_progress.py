"""Running transfers: offset, rate and remaining time, by a clock that the test moves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import Unreachable
from imgfs.images.names import Names
from imgfs.leases.pins import Pins
from imgfs.leases.resource import content, layer
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.transfer.transfer_status import TransferReporter
from imgfs.transfer.transfers import WINDOW, Transfers
from tests.transfer.scene import Scene

ONE, OTHER, IMAGE = Digest.of(b"one"), Digest.of(b"other"), Digest.of(b"image")
HOST = "registry.test"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def transfers(clock: Clock) -> Transfers:
    return Transfers(clock, epoch=1_700_000_000.0)


def test_a_transfer_is_there_as_long_as_it_runs(transfers: Transfers) -> None:
    with transfers.begin(direction="pull", digest=ONE, total=10, place=Source(HOST, "team/app")) as one:
        assert list(transfers) == [one]
        assert (transfers.get(ONE), transfers.named(one.name)) == (one, one)
        assert (one.place, one.started, one.attempts, one.error) == (f"{HOST}/team/app", 1_700_000_100.0, 1, None)
    assert (len(transfers), transfers.get(ONE), transfers.named(one.name)) == (0, None, None)
    assert (transfers.completed, transfers.broken) == (Counter(pull=1), Counter())


def test_one_that_ends_badly_counts_as_broken_with_the_bytes_it_moved(transfers: Transfers) -> None:
    with pytest.raises(Unreachable):
        _break_off(transfers)
    assert (len(transfers), transfers.completed, transfers.broken) == (0, Counter(), Counter(push=1))
    assert transfers.moved == Counter(push=4)


def _break_off(transfers: Transfers) -> None:
    with transfers.begin(direction="push", digest=ONE, total=10, place=Source(HOST, "")) as one:
        one.advance(4)
        raise Unreachable("gone")


def test_the_same_bytes_may_go_several_ways_at_once(transfers: Transfers) -> None:
    begin = transfers.begin
    with begin(direction="push", digest=ONE, total=1, place=Source("a", "")) as first:
        with (
            begin(direction="push", digest=ONE, total=1, place=Source("b", "")) as second,
            begin(direction="pull", digest=ONE, total=1, place=Source("c", "")) as third,
        ):
            names = [one.name for one in transfers]
            assert names == [f"push-{ONE}", f"push-{ONE}.2", f"pull-{ONE}"]
            assert len({one.serial for one in transfers}) == 3
            assert transfers.get(ONE) is third
        assert transfers.get(ONE) is None
        assert transfers.named(first.name) is first
        assert transfers.named(second.name) is None


def test_the_rate_is_that_of_the_last_seconds(transfers: Transfers, clock: Clock) -> None:
    with transfers.begin(direction="pull", digest=ONE, total=10_000, place=Source(HOST, "")) as one:
        assert (one.rate, one.eta) == (0.0, None)
        for _ in range(20):
            clock.now += 0.5
            one.advance(50)
        assert (one.rate, one.eta) == (100.0, 90.0)
        for _ in range(20):
            clock.now += 0.5
            one.advance(200)
        assert (one.rate, one.eta) == (400.0, 12.5)


def test_one_that_stands_still_slows_down_and_is_at_full_speed_at_once_when_it_goes_on(
    transfers: Transfers, clock: Clock
) -> None:
    with transfers.begin(direction="pull", digest=ONE, total=10_000, place=Source(HOST, "")) as one:
        for _ in range(10):
            clock.now += 1
            one.advance(100)
        clock.now += 1000
        assert one.rate < 1
        one.advance(500)
        assert one.rate == 500 / WINDOW


def test_what_was_here_before_is_no_transfer(transfers: Transfers, clock: Clock) -> None:
    with transfers.begin(direction="pull", digest=ONE, total=1000, place=Source(HOST, "")) as one:
        one.at(800)
        clock.now += 1
        one.advance(100)
        assert (one.offset, one.rate, one.eta) == (900, 100.0, 1.0)
        one.at(900)
        assert one.rate == 100.0
        one.at(0)
        assert (one.offset, one.rate) == (0, 0.0)
    assert transfers.moved == Counter(pull=100)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 1 << 40)), max_size=200))
def test_a_rate_is_never_more_than_what_came_and_takes_no_memory(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    transfers = Transfers(clock, epoch=0.0)
    with transfers.begin(direction="pull", digest=ONE, total=1 << 50, place=Source(HOST, "")) as one:
        for seconds, count in steps:
            clock.now += seconds
            one.advance(count)
            moved = sum(count for _, count in steps)
            assert 0 <= one.rate * (clock.now - 100.0) <= moved * (1 + (clock.now - 100.0) / WINDOW) * 1.001
            assert len(one._pace._marks) <= 2 + WINDOW / 0.5
        assert one.offset == sum(count for _, count in steps)


async def test_a_transfer_tells_for_whom_it_is(scene: Scene, clock: Clock) -> None:
    names, pins, transfers = Names(scene.database), Pins(), Transfers(clock, epoch=0.0)
    for name in ("here", "there", "registry.test/else:1"):
        await names.create(name, OTHER if "else" in name else IMAGE)
    reporter = TransferReporter(names, pins)
    with (
        pins.hold(content(OTHER), layer(OTHER)),
        pins.hold(content(IMAGE)) as pin,
        transfers.begin(direction="pull", digest=ONE, total=100, place=Source(HOST, ""), ref=f"layer-{ONE}") as one,
    ):
        assert reporter.status(one).names == []
        pin.add(content(ONE))
        clock.now += 2
        one.advance(50)
        one.failed(Unreachable("the connection broke"))
        told = reporter.status(one)
        assert told.names == ["here", "there"]
        assert (told.total, told.offset, told.rate, told.eta) == (100, 50, 25, 2.0)
        assert (told.attempts, told.error, told.ref) == (2, "the connection broke", f"layer-{ONE}")
        assert (told.started, told.repository) == (100 * 10**9, "")
    assert pins.beside(content(ONE)) == set()
