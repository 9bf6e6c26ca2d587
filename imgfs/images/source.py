"""Where something can be had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """A place where a digest can be had."""

    host: str
    repository: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"
