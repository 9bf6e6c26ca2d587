"""An HTTP server that sends planned replies byte for byte, and the valve at which stalled replies wait for a test."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Protocol

from imgfs.testing.reply import ReceivedRequest, Reply

PIECE = 1 << 20


class Planner(Protocol):
    """Plans the answers. The server calls it from a thread for each connection."""

    valve: Valve

    def receive(self, request: ReceivedRequest, length: int, file: BufferedIOBase) -> bool:
        """Read the body of `request`, of `length` bytes.

        Return False if it is incomplete; the request then gets no answer.
        """
        ...

    def answer(self, request: ReceivedRequest) -> Reply | None:
        """Return the answer to `request`; None closes the connection instead."""
        ...


class ReplyServer(ThreadingHTTPServer):
    """A listening socket that answers every request as `planner` decides."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], planner: Planner) -> None:
        self.planner = planner
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: tests close connections half-way on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ReplyServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = ReceivedRequest(self.command, self.path, headers, b"", self.client_address[1])
        whole = self.server.planner.receive(request, int(headers.get("content-length", "0")), self.rfile)
        reply = self.server.planner.answer(request) if whole else None
        if reply is None or (reply.hold == -1 and not self.server.planner.valve.hold(self.connection)):
            self.close_connection = True
            return
        if not reply.bare:
            self._send_headers(reply)
        if self.command != "HEAD" or reply.bare:
            self._send_body(request, reply)
        self.close_connection = self.close_connection or reply.cut is not None or reply.bare
        if reply.reset:
            self._reset()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _send_headers(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(reply.body) if reply.length == -1 else reply.length))
        self.end_headers()

    def _send_body(self, request: ReceivedRequest, reply: Reply) -> None:
        body = memoryview(reply.body)
        stop = len(body) if reply.cut is None else min(reply.cut, len(body))
        chunked = reply.length is None and not reply.bare
        while True:
            for start, end in _pieces(stop, reply):
                request.sent += end - start
                self._send_piece(body[start:end], chunked=chunked)
                if (reply.trickle or end == reply.hold) and not self.server.planner.valve.hold(self.connection):
                    self.close_connection = True
                    return
            if not reply.endless:
                break
        if chunked and reply.cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        """Reset the connection: SO_LINGER of 0 makes close a reset. As in a network, data sent before may be lost."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send_piece(self, piece: memoryview, *, chunked: bool) -> None:
        if chunked and len(piece):
            self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
        elif not chunked:
            self.wfile.write(piece)


def _pieces(stop: int, reply: Reply) -> list[tuple[int, int]]:
    """Return the bounds of the pieces to send: large, but single bytes for a trickle, and split at a stall."""
    step = 1 if reply.trickle else PIECE
    bounds = {*range(0, stop, step), stop}
    if reply.hold is not None and reply.hold >= 0:
        bounds.add(min(reply.hold, stop))
    if reply.hold == 0:
        return [(0, 0), *zip(sorted(bounds), sorted(bounds)[1:], strict=False)]
    return list(zip(sorted(bounds), sorted(bounds)[1:], strict=False))


class Stall:
    """A stalled answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._event = threading.Event()

    @property
    def released(self) -> bool:
        """Whether it may continue."""
        return self._event.is_set()

    @property
    def abandoned(self) -> bool:
        """Whether the client has closed its connection (not known under TLS)."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except (BlockingIOError, ValueError):
            return False
        except OSError:
            return True

    def release(self) -> None:
        """Let it continue."""
        self._event.set()

    def wait(self) -> None:
        """Block until it is released."""
        self._event.wait()


class Valve:
    """Where stalled answers wait, and where tests find them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._arrived: deque[Stall] = deque()
        self._held: deque[Stall] = deque()
        self._passes = 0
        self._open = False

    def hold(self, connection: socket.socket) -> bool:
        """Announce a stall and wait for its release. Return False when the valve is opened for good."""
        stall = Stall(connection)
        with self._condition:
            self._arrived.append(stall)
            self._held.append(stall)
            if self._passes or self._open:
                self._passes -= not self._open
                stall.release()
            self._condition.notify_all()
        stall.wait()
        with self._condition:
            self._held.remove(stall)
            return not self._open

    def wait_arrival(self) -> Stall | None:
        """Block until another answer stalls and return it; None when the valve is opened for good."""
        with self._condition:
            self._condition.wait_for(lambda: self._arrived or self._open)
            return None if self._open else self._arrived.popleft()

    def release(self, count: int = 1) -> None:
        """Let `count` answers continue: those with a client, then abandoned ones, then the next stalls."""
        with self._condition:
            waiting = sorted((stall for stall in self._held if not stall.released), key=lambda stall: stall.abandoned)
            for stall in waiting[:count]:
                stall.release()
            self._passes += max(0, count - len(waiting))

    def open(self) -> None:
        """Release all stalls, now and later."""
        with self._condition:
            self._open = True
            for stall in self._held:
                stall.release()
            self._condition.notify_all()
