"""Bytes on a connection, HTTP or not: no byte of one answer gets into another, and no answer blocks the event loop."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme

from imgfs.errors import Garbled, RegistryFailed, TooLarge, Unreachable
from imgfs.registry.http.answer import Answer
from imgfs.registry.http.network import HEAD_MAX
from imgfs.registry.http.request import Request
from imgfs.registry.http.transport import Transport
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply

ABSENT = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
CHUNKS = 120_000
MANY_TURNS = 12
"""Number of turns of a hundredth of a second.

The body takes a second or more to parse and comes in three or four reads.
"""


@pytest.fixture
async def transport() -> Transport:
    return Transport(Limits())


async def ask(transport: Transport, fake: FakeRegistry, method: str = "GET") -> Answer:
    return await transport.send(Request(method, f"{fake.url}/v2/", "x"), HostStatistics())


async def read(transport: Transport, fake: FakeRegistry, method: str = "GET") -> tuple[int, bytes]:
    """Return the status and the body of an answer."""
    answer = await ask(transport, fake, method)
    body = b""
    while piece := await answer.read():
        body += piece
    await answer.aclose()
    return answer.status, body


def ports(fake: FakeRegistry) -> list[int]:
    return [request.peer for request in fake.log]


async def test_a_connection_is_used_again(transport: Transport, fake: FakeRegistry) -> None:
    assert [await read(transport, fake) for _ in range(3)] == [(200, b"{}")] * 3
    assert len(set(ports(fake))) == 1
    await transport.aclose()


@pytest.mark.parametrize("more", [ABSENT, b"x", b"\r\n" * 1000])
async def test_excess_bytes_are_not_the_next_answer(transport: Transport, fake: FakeRegistry, more: bytes) -> None:
    fake.fault(faults.more_than_said(more), times=2)
    assert [await read(transport, fake) for _ in range(3)] == [(200, b"{}")] * 3
    assert len(set(ports(fake))) == 3
    await transport.aclose()


async def test_excess_bytes_over_tls_are_not_the_next_answer() -> None:
    authority, here, there = trustme.CA(), ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(here)
    authority.issue_cert("127.0.0.1").configure_cert(there)
    transport = Transport(Limits(), here)
    with FakeRegistry(tls=there) as fake:
        fake.fault(faults.more_than_said(ABSENT))
        assert [await read(transport, fake) for _ in range(3)] == [(200, b"{}")] * 3
        assert len(set(ports(fake))) == 2
        await transport.aclose()


async def test_a_body_that_follows_the_answer_to_head_is_not_the_next_answer(
    transport: Transport, fake: FakeRegistry
) -> None:
    def with_body(reply: Reply) -> Reply:
        return reply.wire("Content-Length: 2", ABSENT)

    fake.fault(with_body)
    assert await read(transport, fake, "HEAD") == (200, b"")
    assert await read(transport, fake) == (200, b"{}")
    await transport.aclose()


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (faults.garbage(b"\x15\x03\x01\x00\x02\x02\x16"), Garbled),
        (faults.garbage(b"HTTP/1.1 fine OK\r\n\r\n"), Garbled),
        (faults.framed("Content-Length: many"), Garbled),
        (faults.garbage(), Unreachable),
        (faults.reset(), Unreachable),
        (faults.endless_headers(), TooLarge),
        (faults.endless_interim(), TooLarge),
    ],
    ids=["TLS", "status", "length", "no end", "reset", "headers", "interim"],
)
async def test_bytes_that_are_no_http_answer_are_reported(
    transport: Transport, fake: FakeRegistry, action: Action, error: type[RegistryFailed]
) -> None:
    fake.fault(action)
    with pytest.raises(error) as caught:
        await ask(transport, fake)
    assert type(caught.value) is error
    assert fake.host in caught.value.message
    assert fake.log[0].sent < HEAD_MAX + (8 << 20)
    assert await read(transport, fake) == (200, b"{}")
    await transport.aclose()


@pytest.mark.parametrize("action", [faults.endless_interim(), faults.endless_headers()], ids=["interim", "headers"])
async def test_a_flood_through_a_proxy_ends_too(
    fake: FakeRegistry, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", fake.url)
    transport = Transport(Limits())
    fake.fault(action)
    with pytest.raises(TooLarge, match=r"registry\.example sent more headers"):
        await transport.send(Request("GET", "http://registry.example/v2/", "x"), HostStatistics())
    assert fake.log[0].path == "http://registry.example/v2/"
    await transport.aclose()


async def test_interim_answers_before_the_answer_are_fine(transport: Transport, fake: FakeRegistry) -> None:
    def later(reply: Reply) -> Reply:
        final = reply.wire("Content-Length: 2", b"{}")
        return Reply(body=b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + bytes(final.body), bare=True)

    fake.fault(later)
    assert await read(transport, fake) == (200, b"{}")
    await transport.aclose()


async def test_a_body_in_chunks_of_a_byte_lets_others_have_their_turn(transport: Transport, fake: FakeRegistry) -> None:
    fake.fault(lambda reply: reply.wire("Transfer-Encoding: chunked", b"1\r\nx\r\n" * CHUNKS + b"0\r\n\r\n"))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            await trio.sleep(0.01)
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert await read(transport, fake) == (200, b"x" * CHUNKS)
        nursery.cancel_scope.cancel()
    assert turns > MANY_TURNS
    await transport.aclose()
