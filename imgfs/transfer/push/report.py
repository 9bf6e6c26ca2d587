"""The report of a push: the outcome of each blob and document, and the bytes of each outcome."""

from __future__ import annotations

from typing import Literal

import msgspec

from imgfs.encoding import indented_json

Outcome = Literal["sent", "mounted", "present", "foreign"]
PartKind = Literal["index", "manifest", "config", "layer"]


class PushPart(msgspec.Struct, frozen=True):
    """One blob or document. `source` is the repository that it was mounted from. Foreign layers are not sent."""

    kind: PartKind
    digest: str
    size: int
    media_type: str
    outcome: Outcome
    source: str | None = None


class PushReport(msgspec.Struct, frozen=True):
    """The report of a push of `digest` to `name`. `mirror` is the host that hosts.toml sets for pushes, if any.

    `sent`, `mounted` and `present` are bytes. Parts are in the order of their arrival. The children of a document that
    was present are not checked and not listed.
    """

    name: str
    mirror: str | None
    digest: str
    media_type: str
    sent: int
    mounted: int
    present: int
    parts: list[PushPart]

    def encode(self) -> bytes:
        """Return indented JSON with a newline."""
        return indented_json(self)


def report(name: str, mirror: str | None, digest: str, media_type: str, parts: list[PushPart]) -> PushReport:
    """Return the report of a completed push."""

    def total(outcome: Outcome) -> int:
        return sum(part.size for part in parts if part.outcome == outcome)

    return PushReport(name, mirror, digest, media_type, total("sent"), total("mounted"), total("present"), parts)
