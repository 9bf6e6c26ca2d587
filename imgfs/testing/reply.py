"""Requests and answers of the fake registry, as values that tests read and faults change."""

from __future__ import annotations

import json
import mmap
import re
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

Body = bytes | mmap.mmap
PATH = re.compile(r"/v2/(.+)/(manifests|blobs|tags|referrers)/([^/]+)\Z")
CATALOG = "/v2/_catalog"


@dataclass(slots=True)
class ReceivedRequest:
    """A logged request. `sent` counts the bytes of the answer's body while they are sent."""

    method: str
    path: str
    """Includes the query."""
    headers: dict[str, str]
    """Names are in lower case."""
    body: bytes = field(default=b"", repr=False)
    peer: int = 0
    """The client's port, which identifies the connection."""
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")

    @property
    def kind(self) -> str:
        """`manifest`, `tag` (HEAD of a manifest), `blob`, `tags`, `referrers`, `catalog`, `token` or `other`."""
        path = urlsplit(self.path).path
        found = PATH.match(path)
        if found is None:
            return {"/token": "token", CATALOG: "catalog"}.get(path, "other")
        if found[2] == "manifests":
            return "tag" if self.method == "HEAD" else "manifest"
        return found[2].removesuffix("s") if found[2] == "blobs" else found[2]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `length` is the announced Content-Length, by default the correct one; None sends chunks."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: Body | memoryview = b""
    length: int | None = -1
    cut: int | None = None
    """Close the connection after this many bytes of the body."""
    hold: int | None = None
    """Stall after this many bytes of the body; -1 stalls before the headers."""
    trickle: bool = False
    """Stall after every byte."""
    endless: bool = False
    """Repeat the body until the client closes."""
    bare: bool = False
    """Send only the body, which includes its own status line and headers, if any. The connection ends after it."""
    reset: bool = False
    """Reset the connection instead of closing it."""
    whole: Reply | None = None
    """For a partial answer: the answer without Range."""

    def wire(self, framing: str, body: bytes = b"") -> Reply:
        """Return the same status and headers, followed by the header line `framing` and `body`, unchanged."""
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in self.headers.items())]
        return replace(self, body="\r\n".join([*lines, framing, "", ""]).encode() + body, bare=True)

    def headed(self, **headers: str) -> Reply:
        """Return the same answer with more headers. Underscores stand for dashes."""
        return replace(self, headers={**self.headers, **{name.replace("_", "-"): headers[name] for name in headers}})


def json_reply(code: int, value: object) -> Reply:
    """Return an answer with a JSON value."""
    return Reply(code, body=json.dumps(value).encode()).headed(Content_Type="application/json")


def error(code: int, name: str) -> Reply:
    """Return an error as registries send it (distribution-spec, "Error Codes")."""
    return json_reply(code, {"errors": [{"code": name, "message": name.lower().replace("_", " ")}]})
