"""A proxy that only tunnels (CONNECT), always to the configured target, and logs the requests."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import cast

from tests.support.serving import served


class Tunnel(ThreadingTCPServer):
    """Every tunnel leads to `target` (host, port), whatever the client asked for.

    `asked` has the heads of the requests.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: tuple[str, int], refusing: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.refusing = refusing
        self.asked: list[str] = []

    @property
    def authority(self) -> str:
        """Its address and port."""
        return f"127.0.0.1:{self.server_address[1]}"


@contextmanager
def tunnel(target: str, refusing: bool = False) -> Generator[Tunnel]:
    """Run a proxy to `target` (`host:port`), or one that refuses with 407."""
    host, _, port = target.partition(":")
    with served(Tunnel((host, int(port)), refusing)) as server:
        yield server


class _Handler(StreamRequestHandler):
    def handle(self) -> None:
        server = cast(Tunnel, self.server)
        head = b""
        while (line := self.rfile.readline()).strip():
            head += line
        server.asked.append(head.decode())
        if server.refusing:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(server.target) as far:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = Thread(target=_pump, args=(far, self.connection), daemon=True)
            back.start()
            _pump(self.connection, far)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
