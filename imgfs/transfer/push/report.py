"""What became of a push: each blob and document, and how many bytes each way of getting there took."""

from __future__ import annotations

from typing import Literal

import msgspec

from imgfs.encoding import indented_json

Outcome = Literal["sent", "mounted", "present", "foreign"]
PartKind = Literal["index", "manifest", "config", "layer"]


class Part(msgspec.Struct, frozen=True):
    """One blob or document. `source` is the repository that it was mounted from; foreign layers are not sent."""

    kind: PartKind
    digest: str
    size: int
    media_type: str
    outcome: Outcome
    source: str | None = None


class Report(msgspec.Struct, frozen=True):
    """A push of `digest` to `name`, at the `mirror` that hosts.toml gives what is pushed to that registry, if it does.

    `sent`, `mounted` and `present` are bytes; parts are in the order of their arrival. Below a document that was
    present nothing was looked at.
    """

    name: str
    mirror: str | None
    digest: str
    media_type: str
    sent: int
    mounted: int
    present: int
    parts: list[Part]

    def encode(self) -> bytes:
        """As JSON, indented, with a newline."""
        return indented_json(self)


def report(name: str, mirror: str | None, digest: str, media_type: str, parts: list[Part]) -> Report:
    """The report of a push that is over."""

    def total(outcome: Outcome) -> int:
        return sum(part.size for part in parts if part.outcome == outcome)

    return Report(name, mirror, digest, media_type, total("sent"), total("mounted"), total("present"), parts)
