"""The order of hosts without requests: how time is assigned to hosts, and the error that is raised at the end."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from imgfs.aio.patience import Patience
from imgfs.errors import ImgfsError, NotFound, RegistryFailed, TimedOut, Unreachable, VerificationFailed
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.hosts.health import Health
from imgfs.registry.hosts.turns import Turns
from imgfs.registry.retry import Pauses

PATIENCE = 75.0


class Shop:
    """Creates Turns with the same health and pauses, for the mirrors `a`, `b`, ... and the registry `z`."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.health = Health()
        self.pauses = Pauses(self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.clock.jump(seconds)

    def turns(self, hosts: str, what: str = "x") -> Turns:
        made = [Endpoint(one, "https", one, mirror=one != "z") for one in hosts]
        return Turns(made, what, self.health, self.pauses, PATIENCE, Patience())

    def told(self, turns: Turns, *errors: ImgfsError) -> ImgfsError:
        """Return the error that is raised after the last of `errors`."""
        for error in errors[:-1]:
            turns.leave(error)
        with pytest.raises(ImgfsError) as caught:
            turns.leave(errors[-1])
        return caught.value


@pytest.fixture
def shop(mock_clock: MockClock) -> Shop:
    return Shop(mock_clock)


async def test_no_host_is_asked_when_patience_is_over(mock_clock: MockClock, shop: Shop) -> None:
    turns = shop.turns("abcz")
    with turns.patience.waiting():
        mock_clock.jump(40)
    turns.leave(TimedOut("a"))
    with turns.patience.waiting():
        mock_clock.jump(40)
    assert isinstance(shop.told(turns, TimedOut("b")), TimedOut)


async def test_of_senders_of_wrong_bytes_the_earliest_is_asked_first(mock_clock: MockClock, shop: Shop) -> None:
    for liar in "zb":
        shop.health.shun(liar, "x")
        mock_clock.jump(1)
    shop.health.shun("a", "x")
    assert shop.turns("abz").current.host == "z"
    assert shop.turns("abcz").current.host == "c"
    assert shop.turns("abz", "y").current.host == "a"


async def test_time_in_the_queue_of_imgfs_is_not_charged_to_a_host(mock_clock: MockClock, shop: Shop) -> None:
    turns = shop.turns("az")
    mock_clock.jump(100)
    turns.asked()
    turns.leave(TimedOut("a"))
    assert turns.current.host == "z"


async def test_the_error_of_a_single_host_is_raised(mock_clock: MockClock, shop: Shop) -> None:
    error = Unreachable("z")
    assert shop.told(shop.turns("z"), error) is error
    assert not shop.health.is_down("z")


@pytest.mark.parametrize(
    ("errors", "kind", "said"),
    [
        ((NotFound("a"), NotFound("b"), Unreachable("z")), Unreachable, "z; a has it not, b has it not"),
        ((Unreachable("a"), RegistryFailed("b"), NotFound("z")), NotFound, "z"),
        ((VerificationFailed("a"), TimedOut("b"), RegistryFailed("z")), RegistryFailed, "z; a sent wrong bytes, b is"),
    ],
)
async def test_the_failure_of_the_registry_itself_is_raised(
    mock_clock: MockClock, shop: Shop, errors: tuple[ImgfsError, ...], kind: type[ImgfsError], said: str
) -> None:
    told = shop.told(shop.turns("abz"), *errors)
    assert type(told) is kind
    assert told.message.startswith(said)


async def test_without_the_registry_a_failure_is_raised_rather_than_an_absence(
    mock_clock: MockClock, shop: Shop
) -> None:
    assert isinstance(shop.told(shop.turns("ab"), Unreachable("a"), NotFound("b")), Unreachable)
    assert isinstance(shop.told(shop.turns("cd"), NotFound("c"), NotFound("d")), NotFound)


async def test_hosts_are_ordered_healthy_then_down_then_senders_of_wrong_bytes(
    mock_clock: MockClock, shop: Shop
) -> None:
    turns = shop.turns("abz")
    turns.leave(VerificationFailed("a"))
    turns.leave(Unreachable("b"))
    order = shop.turns("abz")
    seen = [order.current.host]
    for error in (RegistryFailed("z"), Unreachable("b")):
        order.leave(error)
        seen.append(order.current.host)
    assert seen == ["z", "b", "a"]
    assert shop.turns("abz", "y").current.host == "a"


async def test_a_better_host_is_available_or_not(mock_clock: MockClock, shop: Shop) -> None:
    turns = shop.turns("az")
    assert turns.spare()
    turns.leave(Unreachable("a"))
    assert not turns.spare()
    later = shop.turns("az")
    assert (later.current.host, later.spare()) == ("z", False)
    shop.pauses.pause("z", 10, RegistryFailed("rest"))
    assert later.spare(), "of two that are not well another is as good"
