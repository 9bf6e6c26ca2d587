"""A TCP proxy that breaks connections after a number of bytes, whatever the protocol."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

_PIECE = 1 << 16


class CuttingProxy:
    """Forwards connections to `upstream`, host:port.

    Each of `cuts` breaks one connection after that many bytes of the client.

    Only connections with more bytes are cut. Upstream sees an ordinary end of the stream.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cuts: list[int] = []
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept until `close`; blocks."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=_copy, args=(server, client), daemon=True).start()

    def close(self) -> None:
        """Stop accepting."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while piece := client.recv(_PIECE):
                if self.cuts and passed + len(piece) > self.cuts[0]:
                    server.sendall(piece[: self.cuts.pop(0) - passed])
                    break
                server.sendall(piece)
                passed += len(piece)
        for one in (client, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def cutting_proxy(upstream: str) -> Generator[CuttingProxy]:
    """Run a proxy in front of `upstream` until the block ends."""
    proxy = CuttingProxy(upstream)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
