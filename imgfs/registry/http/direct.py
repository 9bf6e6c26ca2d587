"""The rest of a long body straight from its socket: one call in a thread a piece, and nothing for the event loop.

Through httpx, httpcore and h11 each read costs the loop a hundred steps and three copies, while the threads that hash
and inflate wait for the GIL. Only for bodies whose end is known beforehand, and not over TLS. The connection is of no
use to anybody afterwards.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import trio

PIECE = 512 << 10
LONG = 4 * PIECE
"""Bytes of a rest for which giving the connection up is worth it."""

_TICK = struct.pack("ll", 0, 250_000)
"""How long a call waits for a whole piece, as a timeval: a slow network gives what there is, four times a second."""


class DirectBody(AsyncIterator[bytes]):
    """The next `length` bytes of a connection, in pieces of at most PIECE bytes. `close` it always.

    Raises httpx's errors: ReadTimeout when nothing comes for `silence` seconds, ReadError, RemoteProtocolError when the
    connection ends before. A cancelled call leaves its thread to `close`.
    """

    def __init__(self, connection: trio.socket.SocketType, length: int, silence: float) -> None:
        # A descriptor of its own: httpcore may close the connection's while a thread is about to use it.
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
        """End the connection; a thread that still receives is woken and waited for, which takes no time."""
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
    """What is left of a body of which `received` bytes came; None where it has to come through httpx.

    For use right after httpx gave out a piece, because then it holds no further byte back.
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
        return None  # no descriptor is free
