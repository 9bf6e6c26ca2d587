"""Names whose name server does not answer: their lookups do not delay lookups of other names."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imgfs.registry.http.resolver import THREADS, THREADS_A_NAME, NameResolver

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.9", 80))]
PATIENCE = 20


class NameServer:
    """Answers at once for names that do not begin with `dead`; for the others, when the test tells it to."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: Counter[bytes] = Counter()
        self._changed = threading.Condition()

    def __call__(self, host: bytes, *_: Any) -> list[Any]:
        with self._changed:
            self.asked[host] += 1
            self._changed.notify_all()
        if host.startswith(b"dead"):
            assert self.answer.wait(PATIENCE)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return FOUND

    async def wait_asked(self, count: int) -> None:
        """Wait until the server has got this many requests and all other tasks wait."""
        await trio.to_thread.run_sync(self._wait_asked, count, limiter=trio.CapacityLimiter(1))
        await wait_all_tasks_blocked(0.05)

    def _wait_asked(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked.total() >= count, PATIENCE)


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.answer.set()


async def lookup(name: str, told: list[str] | None = None) -> Any:
    try:
        return await trio.socket.getaddrinfo(name, 80)
    except OSError:
        if told is None:
            raise
        told.append(name)


async def test_a_dead_name_holds_up_neither_other_names_nor_other_threads(server: NameServer) -> None:
    trio.socket.set_custom_hostname_resolver(NameResolver(server))
    told: list[str] = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(lookup, "dead.test", told)
            await server.wait_asked(THREADS_A_NAME)
            assert server.asked == {b"dead.test": THREADS_A_NAME}
            assert await lookup("alive.test") == FOUND
            assert await trio.to_thread.run_sync(lambda: "free") == "free"
            server.answer.set()
    assert told == ["dead.test"] * 60


async def test_a_cancelled_caller_returns_at_once_and_its_thread_keeps_its_slot(server: NameServer) -> None:
    trio.socket.set_custom_hostname_resolver(NameResolver(server))
    with trio.fail_after(PATIENCE):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(lookup, "dead.test")
                await server.wait_asked(THREADS_A_NAME)
                nursery.cancel_scope.cancel()
        assert server.asked[b"dead.test"] == THREADS_A_NAME
        server.answer.set()
        with pytest.raises(socket.gaierror):
            await lookup("dead.test")


async def test_many_dead_names_are_bounded_together(server: NameServer) -> None:
    trio.socket.set_custom_hostname_resolver(NameResolver(server))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(THREADS + 20):
                nursery.start_soon(lookup, f"dead-{number}.test", [])
            await server.wait_asked(THREADS)
            assert server.asked.total() == THREADS
            assert await trio.to_thread.run_sync(lambda: "free") == "free"
            server.answer.set()
    assert server.asked.total() == THREADS + 20


async def test_names_that_were_asked_for_once_are_forgotten(server: NameServer) -> None:
    resolver = NameResolver(server)
    trio.socket.set_custom_hostname_resolver(resolver)
    for number in range(600):
        assert await lookup(f"name-{number}.test") == FOUND
    assert len(resolver._names) <= 256


async def test_the_default_is_the_systems_resolver() -> None:
    trio.socket.set_custom_hostname_resolver(NameResolver())
    found = await trio.socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    assert ("127.0.0.1", 80) in [sockaddr for *_, sockaddr in found]
    assert (await trio.socket.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)) == (
        "127.0.0.1",
        "80",
    )
