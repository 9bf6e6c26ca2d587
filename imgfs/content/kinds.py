"""What plugins of this room are, and what they want of the program."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.plugins.contract import Kind


@dataclass(frozen=True, slots=True)
class Era:
    """When this is: bytes that nobody synced are believed in the era they were written in (ingests/recovery.py)."""

    word: str | None


CONTENT = Kind("content", ContentStore)
INGESTS = Kind("ingests", IngestStore)
ERA = Kind("era", Era)
