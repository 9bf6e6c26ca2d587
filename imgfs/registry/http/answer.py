"""The answer to one request: status, headers, and a body that is read at a bounded pace.

This module also decides at the end whether the connection is fit for another request.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import suppress
from typing import cast

import httpx
import trio

from imgfs.aio.patience import Patience
from imgfs.errors import TimedOut
from imgfs.private_parts import trailing_data
from imgfs.registry.http.connections import PoolBody
from imgfs.registry.http.failures import broken_off
from imgfs.registry.http.request import Request
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics

PIECE = 512 << 10
LONG = 4 * PIECE
"""Smallest rest of a body for which it is worth to give up the connection."""
TURN = 0.01
"""Seconds after which other tasks run: one network read may contain many thousand chunks of one byte."""

_TICK = struct.pack("ll", 0, 250_000)
"""The time for which recv(2) waits for a whole piece, as a timeval. After it, recv(2) returns what has arrived."""


class DirectBody(AsyncIterator[bytes]):
    """The next `length` bytes of a plain connection, received in threads in pieces of at most PIECE bytes.

    Through httpx, httpcore and h11 each read costs the event loop a hundred steps and three copies. This needs one call
    in a thread for each piece. It is for bodies whose length is known, without TLS. The connection cannot be used
    again. `close` it always. Raises httpx's errors: ReadTimeout if no byte comes for `silence` seconds, ReadError, and
    RemoteProtocolError if the connection ends early. A cancelled read leaves its thread to `close`.
    """

    def __init__(self, connection: trio.socket.SocketType, length: int, silence: float) -> None:
        # httpcore may close the descriptor of the connection while a thread is about to use it.
        self._socket = socket.fromfd(connection.fileno(), connection.family, connection.type)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TICK)
        self._using = threading.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._left = length
        self._silence = silence

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        try:
            with trio.fail_after(self._silence):
                piece = await self._piece()
        except trio.TooSlowError as error:
            raise httpx.ReadTimeout("nothing came") from error
        except OSError as error:
            raise httpx.ReadError(str(error)) from error
        if not piece:
            raise httpx.RemoteProtocolError(f"the connection ended {self._left} bytes before the body")
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        """End the connection. This wakes a thread that still receives, and waits for it, which is immediate."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._using:
            self._socket.close()

    async def _piece(self) -> bytes:
        while True:
            with suppress(BlockingIOError):
                return await trio.to_thread.run_sync(self._receive, abandon_on_cancel=True, limiter=self._limiter)

    def _receive(self) -> bytes:
        with self._using:
            if self._socket.fileno() < 0:
                return b""
            return self._socket.recv(min(self._left, PIECE), socket.MSG_WAITALL)


def direct_body(response: httpx.Response, received: int, silence: float) -> DirectBody | None:
    """Return the rest of a body of which httpx returned `received` bytes, or None if httpx must read it.

    Call this right after httpx returned a piece: only then httpx holds no further bytes of the body.
    """
    length = response.headers.get("content-length", "")
    if "transfer-encoding" in response.headers or not (length.isascii() and length.isdigit()):
        return None
    stream = response.extensions.get("network_stream")
    if stream is None or stream.get_extra_info("ssl_object") is not None or int(length) - received < LONG:
        return None
    try:
        return DirectBody(stream.get_extra_info("socket"), int(length) - received, silence)
    except OSError:
        return None  # no descriptor is left


class Answer:
    """A status, headers, and a body that is read in pieces. The caller must close it. Closing does not drain."""

    def __init__(
        self,
        response: httpx.Response,
        request: Request,
        limits: Limits,
        counters: HostStatistics,
        asked: float,
        patience: Patience,
    ) -> None:
        self.request = request
        """The request that was answered, which may be a redirected one."""
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.authority = request.authority
        self.slow = False
        """Whether the body came too slowly, so that its bytes do not count as progress."""
        self._response = response
        # Not aiter_raw: at the end it frees the connection before _is_overfull can check it.
        self._raw = aiter(cast(AsyncIterable[bytes], response.stream))
        self._direct: DirectBody | None = None
        self._limits = limits
        self._counters = counters
        self._asked = asked
        self._patience = patience
        self._is_closed = False
        self._pace = _Pace(limits)
        self._turn = trio.current_time()
        self._reading = False

    def header_values(self, name: str) -> list[str]:
        """Return all values of a header that may be repeated."""
        return self._response.headers.get_list(name)

    @property
    def media_type(self) -> str:
        """The Content-Type without parameters, in lower case; "" if there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def length(self) -> int | None:
        """The Content-Length, or None if it is missing or not a number."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None

    async def read(self) -> bytes:
        """Return raw bytes, `b""` at the end. Raises Unreachable if the connection breaks, TimedOut on a stall."""
        before = trio.current_time()
        try:
            with self._patience.waiting():
                piece = await self._next()
        except trio.TooSlowError:
            raise TimedOut(
                f"{self.request.subject}: {self.authority} makes no progress; check the network, then read again"
            ) from None
        except httpx.HTTPError as error:
            raise broken_off(error, self.request.subject, self.authority, self._limits.silence) from None
        if piece and not self._reading:
            self._direct = direct_body(self._response, len(piece), self._limits.silence)
        self._reading = bool(piece)
        await self._take_turns()
        self._counters.received += len(piece)
        self._counters.sources[self.request.origin] += len(piece)
        waited = trio.current_time() - before
        self._patience.gained(min(waited, len(piece) / self._limits.slow_rate))
        self._judge_pace(len(piece), waited)
        return piece

    async def _next(self) -> bytes:
        """Return the next bytes. Raises TooSlowError once the reader's request has no time left."""
        idle, limits = self._patience.idle, self._limits
        if idle <= limits.patience:
            return await anext(self._direct or self._raw, b"")  # its own timeout is shorter than what is left
        with trio.fail_after(max(0.0, limits.call - idle)):
            return await anext(self._direct or self._raw, b"")

    async def aclose(self) -> None:
        """Free the connection for the next request, or close it if the body is not read to its end."""
        if not self._is_closed:
            self._is_closed = True
            self._counters.inflight -= 1
            self._counters.whole.observe(trio.current_time() - self._asked)
        if self._direct is not None:
            self._direct.close()
        elif _is_overfull(self._response):
            _hang_up(self._response)
        with trio.CancelScope(shield=True):
            await self._response.aclose()
            # The generators of httpcore are suspended in the middle. A read on the closed connection ends all of them.
            # Closing the outermost would leave the inner generators to the garbage collector, which warns.
            with suppress(httpx.HTTPError):
                while (self._reading or self._direct) and await anext(self._raw, None) is not None:
                    await self._take_turns()

    async def _take_turns(self) -> None:
        if trio.current_time() - self._turn > TURN:
            await trio.lowlevel.checkpoint()
            self._turn = trio.current_time()

    def _judge_pace(self, received: int, waited: float) -> None:
        if self._pace.is_too_slow(received, waited):
            self.slow = True
            raise TimedOut(
                f"{self.request.subject}: {self.authority} sent {self._pace.received} bytes in "
                f"{self._pace.waited:.0f} s, below {self._limits.slow_rate} bytes/s; check the network, then read again"
            )


class _Pace:
    """The rate of a body over the time that reads waited for it, checked once in each window."""

    def __init__(self, limits: Limits) -> None:
        self.received = 0
        self.waited = 0.0
        self._window = limits.slow_window
        self._rate = limits.slow_rate

    def is_too_slow(self, received: int, waited: float) -> bool:
        """Whether these bytes end a window in which too few came. The end of the body (no byte) is no stall."""
        self.received += received
        self.waited += waited
        if self.waited < self._window:
            return False
        if received and self.received < self._rate * self.waited:
            return True
        self.received, self.waited = 0, 0.0
        return False


def _is_overfull(response: httpx.Response) -> bool:
    """Return whether more bytes came over the connection than `response` announced.

    The next response would begin with them. Returns True if this cannot be determined: the connection is not reused.
    """
    body = response.stream
    return trailing_data(body.stream if isinstance(body, PoolBody) else body) != b""


def _hang_up(response: httpx.Response) -> None:
    """End the connection of `response`, so that no request uses it again."""
    with suppress(OSError):
        response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
