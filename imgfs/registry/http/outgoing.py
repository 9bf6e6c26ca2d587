"""What a request sends: bytes of a known length, from their beginning each time the request is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

OCTETS = "application/octet-stream"


class Once(AsyncIterator[bytes]):
    """Bytes that are in memory, as one piece."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    async def __anext__(self) -> bytes:
        data, self._left = self._left, b""
        if not data:
            raise StopAsyncIteration
        return data


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The body of a request. `pieces` gives exactly `length` bytes, and an iterator that need not be closed."""

    length: int
    pieces: Callable[[], AsyncIterator[bytes]]
    media_type: str = OCTETS

    @classmethod
    def of(cls, data: bytes, media_type: str = OCTETS) -> Outgoing:
        """Bytes that are in memory."""
        return cls(len(data), lambda: Once(data), media_type)

    @property
    def headers(self) -> dict[str, str]:
        """What the request's headers say of it."""
        return {"content-length": str(self.length), "content-type": self.media_type}
