"""A far link to a registry: a loopback HTTP proxy that adds round trips, shares a bandwidth and counts requests.

A new connection costs one round trip, and each request one more. The bodies of all connections share the bandwidth. A
client that tries TLS receives, after two round trips, the answer of a plain server. Not modelled: slow start, loss,
TLS, uploads, HTTP/2. `GET /-/counts` returns the counted requests as JSON, `POST /-/zero` resets them. Neither is
delayed or counted.

Run: python -m benchmarks.shaper LISTEN UPSTREAM [--rtt MS] [--mbps N]
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

PIECE = 128 << 10
_TLS_HANDSHAKE = b"\x16"
_NOT_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent a TLS hello to a plain HTTP server.\n"
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
_KINDS = ("blobs", "manifests", "referrers", "tags")


@dataclass
class Link:
    """The bytes of all connections in one queue. `carry` returns when the given bytes have passed."""

    bytes_per_second: float
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, size: int) -> None:
        if not self.bytes_per_second:
            return
        with self._lock:
            # After a sleep that ended late, the link may catch up at most 5 ms.
            self._free_at = max(self._free_at, time.monotonic() - 0.005) + size / self.bytes_per_second
            delay = self._free_at - time.monotonic()
        if delay > 0.0005:
            time.sleep(delay)


@dataclass
class Counts:
    """Requests by method, status and kind, and the bytes of bodies."""

    requests: Counter[str] = field(default_factory=Counter[str])
    body_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, size: int = 0) -> None:
        with self._lock:
            self.requests[what] += 1
            self.body_bytes += size

    def zero(self) -> None:
        with self._lock:
            self.requests.clear()
            self.body_bytes = 0

    def as_json(self) -> bytes:
        with self._lock:
            return json.dumps({"requests": self.requests, "body_bytes": self.body_bytes}).encode()


class Passage(BaseHTTPRequestHandler):
    """One client connection and its connection to the registry."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 << 10
    link: ClassVar[Link]
    counts: ClassVar[Counts]
    rtt: ClassVar[float]
    upstream_port: ClassVar[int]

    def setup(self) -> None:
        super().setup()
        self._ready_at = time.monotonic() + self.rtt
        self._upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port)

    def handle(self) -> None:
        try:
            if self.request.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
                self._refuse_tls()
            else:
                super().handle()
        except OSError:
            self.close_connection = True  # the client closed the connection, which it may do
        finally:
            self._upstream.close()

    def _refuse_tls(self) -> None:
        time.sleep(2 * self.rtt)
        self.counts.add("TLS hello")
        self.wfile.write(_NOT_TLS)

    def do_GET(self) -> None:
        if self.path == "/-/counts":
            self._answer(self.counts.as_json())
        else:
            self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        if self.path == "/-/zero":
            self.counts.zero()
            self._answer(b"{}")
        else:
            self.send_error(501, "this link carries no uploads")

    do_PUT = do_PATCH = do_DELETE = do_POST

    def _forward(self) -> None:
        due = max(self._ready_at, time.monotonic()) + self.rtt
        if self.rtt:
            time.sleep(max(0.0, due - time.monotonic()))
        response = self._ask_upstream()
        size = self._relay(response)
        ranged = " range" if "Range" in self.headers else ""
        self.counts.add(f"{self.command} {response.status} {_kind(self.path)}{ranged}", size)

    def _ask_upstream(self) -> http.client.HTTPResponse:
        """Forward the request with its headers line by line: skopeo sends one Accept line for each media type."""
        self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self._upstream.putheader(name, value)
        self._upstream.endheaders()
        return self._upstream.getresponse()

    def _relay(self, response: http.client.HTTPResponse) -> int:
        """Forward a response, and return the count of body bytes.

        A chunked body is read completely first, to know its length.
        """
        whole = response.read() if response.chunked else None
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if whole is not None:
            self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.flush()
        if whole is not None:
            self._send(memoryview(whole))
            return len(whole)
        return self._stream(response)

    def _stream(self, response: http.client.HTTPResponse) -> int:
        piece, total = memoryview(bytearray(PIECE)), 0
        while size := response.readinto(piece):
            self._send(piece[:size])
            total += size
        return total

    def _send(self, data: memoryview) -> None:
        self.request.sendall(data)
        self.link.carry(len(data))

    def _answer(self, body: bytes) -> None:
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the counts replace the log."""


def _kind(path: str) -> str:
    return next((kind for kind in _KINDS if f"/{kind}/" in path), "ping" if path.rstrip("/") == "/v2" else "other")


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("listen", type=int)
    parser.add_argument("upstream", type=int)
    parser.add_argument("--rtt", type=float, default=0.0, help="milliseconds")
    parser.add_argument("--mbps", type=float, default=0.0, help="10^6 bytes a second; 0: no limit")
    options = parser.parse_args()
    Passage.link, Passage.counts = Link(options.mbps * 1e6), Counts()
    Passage.rtt, Passage.upstream_port = options.rtt / 1000, options.upstream
    Proxy(("127.0.0.1", options.listen), Passage).serve_forever()


if __name__ == "__main__":
    main()
