"""Table of registry faults. For each fault and each place in the protocol, it lists the errno that a reader gets.

The table only describes the cases. test_faults.py runs them.
"""

from __future__ import annotations

import errno
import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from imgfs.oci.descriptor import DOCKER_MANIFEST
from imgfs.testing.faults import (
    Action,
    chunked,
    close,
    compressed,
    content_range,
    cut_at,
    endless,
    endless_headers,
    endless_interim,
    framed,
    garbage,
    html,
    huge,
    longer,
    more_than_said,
    no_last_chunk,
    no_length,
    range_ignored,
    redirect,
    reset,
    reset_at,
    said_to_be,
    stall,
    stall_in_headers,
    status,
    to_range,
    trickle,
    trickle_headers,
    typed,
    wrong_bytes,
    wrong_length,
)

MEBIBYTE = 1 << 20
GOOD = 0
"""The read succeeds."""
NET, SLOW, BAD, BIG = errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EBADMSG, errno.EFBIG
ODD, NO, GONE, BUSY, KIND = errno.EREMOTEIO, errno.EACCES, errno.ENOENT, errno.EDQUOT, errno.EOPNOTSUPP

DOCUMENTS = ("index", "manifest")
HEAD = ("touch",)
BLOBS = ("config", "layer", "storage")
TOKEN = ("token",)
EVERYWHERE = (*DOCUMENTS, *HEAD, *BLOBS, *TOKEN)
BOMB = gzip.compress(bytes(64 * MEBIBYTE), 1)
CANARY = "signature=canary-query"


@dataclass(frozen=True, slots=True)
class Row:
    """A permanent fault and its errno for each place. The fault is not tested at places that `codes` does not list."""

    name: str
    action: Action
    codes: Mapping[str, int]
    says: str = ""
    """Text that the error message must contain in addition to the host."""
    first: Action | None = None
    """Fault of the first request only, before `action` applies."""
    ground: str = ""
    """Key of the registries that the case uses. Cases with slow bodies or Retry-After need separate registries."""


class Case(NamedTuple):
    """One pair of fault and place."""

    row: Row
    place: str

    @property
    def code(self) -> int:
        return self.row.codes[self.place]

    @property
    def mark(self) -> str:
        """Repository name, unique for each case."""
        return f"{self.place}/{re.sub('[^a-z0-9]+', '-', self.row.name.lower())}"


def everywhere(code: int, **but: int) -> dict[str, int]:
    """Return the same errno for every place, except the places in `but`."""
    return {**dict.fromkeys(EVERYWHERE, code), **but}


def registries(code: int) -> dict[str, int]:
    """Return the same errno for every place except the token endpoint."""
    return {place: code for place in EVERYWHERE if place not in TOKEN}


def bodies(documents: int, blobs: int, token: int | None = None, **more: int) -> dict[str, int]:
    """Return the errno for each place of a fault in the body. HEAD responses have no body, so 'touch' is left out."""
    token = documents if token is None else token
    return {**dict.fromkeys(DOCUMENTS, documents), **dict.fromkeys(BLOBS, blobs), "token": token, **more}


def blobs(code: int) -> dict[str, int]:
    """Return the same errno for every blob place."""
    return dict.fromkeys(BLOBS, code)


def ever_further() -> Action:
    """Redirect to a new address on each request."""
    hops = count()
    return lambda reply: redirect(f"?hop={next(hops)}&{CANARY}")(reply)


LATER = "Fri, 31 Dec 9999 23:59:59 GMT"
BEFORE = "Fri, 31 Dec 1999 23:59:59 GMT"

ROWS = [
    # Connections.
    Row("closed before headers", close(), everywhere(NET)),
    Row("reset before headers", reset(), everywhere(NET)),
    Row("cut at 0", cut_at(0), bodies(NET, NET)),
    Row("cut at 100", cut_at(100), bodies(NET, GOOD, GOOD)),
    Row("reset at 30", reset_at(30), bodies(NET, GOOD)),
    Row("garbage", garbage(), everywhere(NET), "not HTTP"),
    Row("garbage and an empty line", garbage(b"SSH-2.0-x\r\nInvalid\r\n\r\n"), everywhere(ODD), "not HTTP"),
    Row("a TLS alert", garbage(b"\x15\x03\x01\x00\x02\x02\x16"), everywhere(ODD), "not HTTP"),
    Row("a status that is a word", garbage(b"HTTP/1.1 fine OK\r\n\r\n"), everywhere(ODD), "not HTTP"),
    # Timeouts.
    Row("stall before headers", stall(), everywhere(SLOW)),
    Row("stall in headers", stall_in_headers(), everywhere(SLOW)),
    Row("slow headers", trickle_headers(), everywhere(SLOW), ground="dripping"),
    Row("stall at 0", stall(0), bodies(SLOW, SLOW)),
    Row("stall at 100", stall(100), bodies(SLOW, GOOD, GOOD)),
    Row("slow body", trickle(), bodies(SLOW, SLOW), ground="dripping"),
    Row("endless interim answers", endless_interim(), everywhere(BIG), "headers"),
    # Headers.
    Row("endless headers", endless_headers(), everywhere(BIG), "headers"),
    Row("huge headers", status(200, X_A="x" * 40_000, X_B="x" * 40_000), everywhere(BIG), "headers"),
    Row("length is a word", framed("Content-Length: many"), everywhere(ODD), "not HTTP"),
    Row("length is negative", framed("Content-Length: -1"), everywhere(ODD), "not HTTP"),
    Row("two lengths", framed("Content-Length: 5, 6"), everywhere(ODD), "not HTTP"),
    Row("length beyond the body", framed("Content-Length: 99999"), bodies(NET, BAD)),
    # Lengths and chunks.
    Row("no length", no_length(), bodies(GOOD, GOOD)),
    Row("to the end of the connection", framed("Connection: close"), bodies(GOOD, GOOD)),
    Row("short", wrong_length(20), bodies(BAD, BAD)),
    Row("long", longer(5, announced=True), bodies(BAD, BAD)),
    Row("long in chunks", longer(5), bodies(BAD, BAD)),
    Row(
        "more than it said", more_than_said(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), bodies(GOOD, GOOD)
    ),
    Row("endless", endless(), bodies(BIG, BAD), "more than"),
    Row("64 MB", huge(64 * MEBIBYTE), bodies(BIG, BAD)),
    Row("64 MB in chunks", huge(64 * MEBIBYTE, announced=False), bodies(BIG, BAD), "more than"),
    Row("a chunk without a size", chunked(b"zz\r\n", b"\r\n0\r\n\r\n"), bodies(NET, NET)),
    Row("a chunk without an end", chunked(b"1\r\n", b"\r\n0\r\n\r\n"), bodies(NET, NET)),
    Row("a chunk beyond numbers", chunked(b"f" * 40 + b"\r\n", b"\r\n0\r\n\r\n"), bodies(NET, NET)),
    Row("no last chunk", no_last_chunk(), bodies(NET, GOOD)),
    # Content, media type and encoding.
    Row("wrong bytes", wrong_bytes(), bodies(BAD, BAD)),
    Row("empty", status(200), bodies(BAD, BAD)),
    Row("login page", html(), bodies(BAD, BAD, touch=GOOD)),
    Row("no JSON", status(200, b"{"), bodies(BAD, BAD)),
    Row("schema 1", status(200, b'{"schemaVersion":1,"fsLayers":[]}'), {"index": KIND, "manifest": BAD}),
    Row("a picture by its type", typed("image/png"), bodies(BAD, GOOD, GOOD, touch=GOOD)),
    Row(
        "another kind of document by its type",
        typed("application/vnd.oci.artifact.manifest.v1+json"),
        bodies(KIND, GOOD, GOOD, touch=GOOD),
        "vnd.oci.artifact.manifest.v1",
    ),
    Row("docker's type for an OCI document", typed(DOCKER_MANIFEST), {"index": BAD, "manifest": GOOD}),
    Row("gzip", compressed(), bodies(GOOD, BAD)),
    Row("gzip that is none", said_to_be("gzip"), bodies(BAD, GOOD)),
    Row("gzip bomb", status(200, BOMB, Content_Encoding="gzip"), bodies(BIG, BAD)),
    Row("unknown encoding", said_to_be("br"), bodies(BAD, GOOD)),
    # Ranges.
    Row("206 to no Range", content_range("bytes 0-9/10"), everywhere(ODD, **blobs(BAD)), "206"),
    Row("416 to no Range", status(416), everywhere(ODD, **blobs(BAD)), "416"),
    Row("200 to a Range", to_range(range_ignored()), blobs(GOOD), first=cut_at(100)),
    Row("another Content-Range", to_range(content_range("bytes 0-9/10")), blobs(GOOD), first=cut_at(100)),
    Row("no Content-Range", to_range(status(206, b"x" * 10)), blobs(GOOD), first=cut_at(100)),
    Row("416 to a Range", to_range(status(416)), blobs(GOOD), first=cut_at(100)),
    Row("404 to a Range", to_range(status(404)), blobs(GONE) | {"storage": ODD}, "404", first=cut_at(100)),
    # Redirects.
    Row("redirect to ftp", redirect(f"ftp://127.0.0.1/x?{CANARY}"), everywhere(ODD), "redirect"),
    Row("redirect to a file", redirect(f"file:///etc/shadow?{CANARY}"), everywhere(ODD), "redirect"),
    Row("redirect with a user", redirect(f"http://root:canary@127.0.0.1/?{CANARY}"), everywhere(ODD), "redirect"),
    Row("redirect that is no address", redirect("http://[::1"), everywhere(ODD), "redirect"),
    Row("redirect to a bad port", redirect("http://127.0.0.1:99999/"), everywhere(ODD), "redirect"),
    Row("redirect in a circle", redirect(f"?{CANARY}"), registries(ODD), "circle"),
    Row("redirects without end", ever_further(), registries(ODD), "more than 5"),
    Row("redirect to nowhere", status(307), everywhere(ODD), "307"),
    Row("redirect to nobody", redirect(f"http://127.0.0.1:9/x?{CANARY}"), everywhere(NET), "127.0.0.1:9"),
    # Statuses.
    Row("204", status(204), everywhere(ODD), "204"),
    Row("400", status(400), everywhere(ODD), "400"),
    Row("401", status(401), everywhere(NO), "401"),
    Row("401 of no scheme", status(401, WWW_Authenticate="x y z"), everywhere(NO), "401"),
    Row("403", status(403), everywhere(NO), "403"),
    Row("404", status(404), everywhere(GONE, storage=ODD, token=ODD), "404"),
    Row("429", status(429), everywhere(BUSY), "429"),
    Row("500", status(500, b'{"errors":[{"code":"UNKNOWN"}]}'), everywhere(ODD), "500"),
    Row("502", status(502), everywhere(ODD), "502"),
    Row("503", status(503), everywhere(ODD), "503"),
    Row("504", status(504), everywhere(ODD), "504"),
    Row("599", status(599), everywhere(ODD), "599"),
    *(
        Row(f"429 and {name}", status(429, Retry_After=value), everywhere(BUSY), ground="limited")
        for name, value in {
            "seconds": "1",
            "an hour": "3600",
            "an age": "9" * 60,
            "a date": LATER,
            "a date before": BEFORE,
            "less than nothing": "-5",
            "a word": "soon",
        }.items()
    ),
    Row("503 and an hour", status(503, Retry_After="3600"), everywhere(ODD), ground="unavailable"),
]


def cases() -> Iterator[Case]:
    """Yield every pair of fault and place."""
    for row in ROWS:
        yield from (Case(row, place) for place in row.codes)
