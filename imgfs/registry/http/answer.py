"""What comes back for one request: status, headers, and a body that is read at a pace and by turns with others.

Owns the end of an answer too: whether its connection is fit for another request.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable, Mapping
from contextlib import suppress
from typing import cast

import httpx
import trio

from imgfs.aio.patience import Patience
from imgfs.errors import TimedOut
from imgfs.private_parts import trailing_data
from imgfs.registry.http.connections import PoolBody
from imgfs.registry.http.direct import DirectBody, direct_body
from imgfs.registry.http.failures import broken_off
from imgfs.registry.http.request import Request
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics

TURN = 0.01
"""Seconds after which others get their turn: one read from the network may hold many thousand chunks of a byte."""


class Answer:
    """A status, headers, and a body that is read piece by piece. Must be closed; closing does not drain."""

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
        """What it answers in the end, behind redirects."""
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.authority = request.authority
        self.slow = False
        """Whether the body was given up for its pace, so that its bytes are no progress."""
        self._response = response
        # Not aiter_raw: at the end it gives the connection away, before anybody has looked what is left on it.
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
        """Every value of a header that may be repeated."""
        return self._response.headers.get_list(name)

    @property
    def media_type(self) -> str:
        """Content-Type without its parameters, in lower case; "" where there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def length(self) -> int | None:
        """Content-Length, if there is a usable one."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None

    async def read(self) -> bytes:
        """The next raw bytes, `b""` at the end; raises Unreachable when the connection breaks, TimedOut on a stall."""
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
        """The next bytes as they come; raises TooSlowError once the request has no time left."""
        idle, limits = self._patience.idle, self._limits
        if idle <= limits.patience:
            return await anext(self._direct or self._raw, b"")  # its own timeout is shorter than what is left
        with trio.fail_after(max(0.0, limits.call - idle)):
            return await anext(self._direct or self._raw, b"")

    async def aclose(self) -> None:
        """Give the connection back, or close it when bytes of the body are still to come."""
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
            # The generators below were left in the middle. On the closed connection the next read ends all of them,
            # where closing the outermost would leave the inner ones to the garbage collector and its warnings.
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
    """How fast a body comes, of the time that somebody waited for it; judged once a window."""

    def __init__(self, limits: Limits) -> None:
        self.received = 0
        self.waited = 0.0
        self._window = limits.slow_window
        self._rate = limits.slow_rate

    def is_too_slow(self, received: int, waited: float) -> bool:
        """Whether with these bytes a window is over in which too few came; the end of a body (no byte) is no stall."""
        self.received += received
        self.waited += waited
        if self.waited < self._window:
            return False
        if received and self.received < self._rate * self.waited:
            return True
        self.received, self.waited = 0, 0.0
        return False


def _is_overfull(response: httpx.Response) -> bool:
    """Whether more bytes came over the connection than `response` announced: the next response would begin with them.

    Where nobody can see that, it may be so.
    """
    body = response.stream
    return trailing_data(body.stream if isinstance(body, PoolBody) else body) != b""


def _hang_up(response: httpx.Response) -> None:
    """End the connection of `response`, so that nobody uses it again."""
    with suppress(OSError):
        response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
