"""What the fake registry is asked and what it answers, as values that tests read and faults change."""

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
    """One request, as the log keeps it. `sent` counts bytes of the body and grows while they are sent."""

    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes = field(default=b"", repr=False)
    peer: int = 0
    """The client's port: the same for requests on one connection."""
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
    """What to answer. `length` is the Content-Length to announce, by default the truth; None sends chunks."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: Body | memoryview = b""
    length: int | None = -1
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    hold: int | None = None
    """Stall after so many bytes of the body; -1 stalls before the headers."""
    trickle: bool = False
    """Stall after every byte."""
    endless: bool = False
    """Repeat the body until the client goes."""
    bare: bool = False
    """The body is all that is sent: it brings its own status line and headers, if any. The connection ends with it."""
    reset: bool = False
    """End the connection by a reset, where it ends."""
    whole: Reply | None = None
    """Of a part: the answer without Range."""

    def wire(self, framing: str, body: bytes = b"") -> Reply:
        """The same status and headers, followed on the wire by the header line `framing` and `body`, as they are."""
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in self.headers.items())]
        return replace(self, body="\r\n".join([*lines, framing, "", ""]).encode() + body, bare=True)

    def headed(self, **headers: str) -> Reply:
        """The same with further headers; underscores stand for dashes."""
        return replace(self, headers={**self.headers, **{name.replace("_", "-"): headers[name] for name in headers}})


def json_reply(code: int, value: object) -> Reply:
    """Answer with a value as JSON."""
    return Reply(code, body=json.dumps(value).encode()).headed(Content_Type="application/json")


def error(code: int, name: str) -> Reply:
    """Answer with an error as registries do (distribution-spec, "Error Codes")."""
    return json_reply(code, {"errors": [{"code": name, "message": name.lower().replace("_", " ")}]})
