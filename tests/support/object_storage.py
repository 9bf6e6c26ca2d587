"""An object storage to which registries redirect: it serves an object to every client with a valid signed URL.

It refuses what S3 refuses: an expired URL or a wrong signature (403), and a request with another authorization beside
the signature (400, "Only one auth mechanism allowed"). The test sets the time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.serving import served

KEY = b"canary-of-the-storage"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


@dataclass(slots=True)
class Asked:
    """A request and its answer."""

    key: str
    headers: dict[str, str]
    """Names are in lower case."""
    status: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class ObjectStorage(ThreadingHTTPServer):
    """Serves `objects` by key. A URL from `sign` is valid until `now` is later than its expiry."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.now = 1000
        self.asked: list[Asked] = []
        self.cuts: list[int] = []
        """Byte counts of a body after which the next answers break off."""
        self.expires_while_read = False
        """Whether a URL becomes invalid after its first use."""

    @property
    def authority(self) -> str:
        return f"{self.server_address[0]}:{self.server_port}"

    def sign(self, key: str, seconds: int = 60) -> str:
        """Return a URL of an object that is valid for so many seconds."""
        until = self.now + seconds
        query = {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Expires": until, "X-Amz-Signature": _proof(key, until)}
        return f"http://{self.authority}/{key}?{urlencode(query)}"

    def refusal(self, asked: Asked, query: dict[str, list[str]]) -> tuple[int, str] | None:
        """Return status and code for a request that must be refused, or None."""
        until, proof = int(query.get("X-Amz-Expires", ["0"])[0]), query.get("X-Amz-Signature", [""])[0]
        if "authorization" in asked.headers:
            return 400, "InvalidArgument"
        if proof != _proof(asked.key, until):
            return 403, "SignatureDoesNotMatch"
        if until < self.now:
            return 403, "AccessDenied"
        return None if asked.key in self.objects else (404, "NoSuchKey")


def _proof(key: str, until: int) -> str:
    return hmac.new(KEY, f"{key} {until}".encode(), hashlib.sha256).hexdigest()


@contextmanager
def object_storage() -> Generator[ObjectStorage]:
    """Run a storage on loopback until the block ends."""
    with served(ObjectStorage()) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        storage, parts = cast("ObjectStorage", self.server), urlsplit(self.path)
        asked = Asked(parts.path[1:], {name.lower(): value for name, value in self.headers.items()})
        storage.asked.append(asked)
        refusal = storage.refusal(asked, parse_qs(parts.query))
        if refusal is not None:
            asked.status, code = refusal
            return self._send(asked.status, f"<Error><Code>{code}</Code></Error>".encode(), {}, None)
        data = storage.objects[asked.key]
        found = _RANGE.match(asked.range or "")
        start, end = (int(found[1]), int(found[2] or len(data) - 1) + 1) if found else (0, len(data))
        asked.status = 206 if found else 200
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if found:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        cut = storage.cuts.pop(0) if storage.cuts else None
        if storage.expires_while_read:
            storage.now += 1000
        return self._send(asked.status, data[start:end], headers, cut)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = cut is not None
