"""A plain HTTP proxy in front of a registry that logs every request, to count them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, cast

from tests.support.serving import served

CHUNK = 1 << 16
_OWN_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection"})


class Request(NamedTuple):
    """A logged request. `range` is the Range header, or ""."""

    method: str
    path: str
    range: str


class CountingProxy(ThreadingHTTPServer):
    """Forwards requests to `upstream` unchanged. A request is in `requests` before upstream receives it."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.requests: list[Request] = []

    @property
    def host(self) -> str:
        """The host part of a reference."""
        return f"127.0.0.1:{self.server_port}"

    def count(self, method: str | None = None, within: str = "") -> int:
        """Return the number of requests with this method (any if None) and `within` in their path."""
        return sum(1 for one in self.requests if method in (None, one.method) and within in one.path)


@contextmanager
def counting_proxy(upstream: str) -> Generator[CountingProxy]:
    """Run a proxy on a loopback port in front of `upstream` (host:port) until the block ends."""
    with served(CountingProxy(upstream)) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        proxy = cast("CountingProxy", self.server)
        proxy.requests.append(Request(self.command, self.path, self.headers.get("Range", "")))
        connection = HTTPConnection(proxy.upstream)
        try:
            self._ask(connection)
            self._answer(connection.getresponse())
        except ConnectionError:
            self.close_connection = True
        finally:
            connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: `requests` is the log."""

    def _ask(self, connection: HTTPConnection) -> None:
        chunked = self.headers.get("Transfer-Encoding", "") == "chunked"
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _OWN_HOP:
                connection.putheader(name, value)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(self._chunks() if chunked else self._body(), encode_chunked=chunked)

    def _body(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", "0"))
        while left and (data := self.rfile.read(min(CHUNK, left))):
            left -= len(data)
            yield data

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, answer: HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _OWN_HOP:
                self.send_header(name, value)
        bodiless = self.command == "HEAD" or answer.status in {204, 304}
        self.close_connection = answer.length is None and not bodiless
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        while data := answer.read(CHUNK):
            self.wfile.write(data)
