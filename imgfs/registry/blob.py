"""A range of a blob as a stream that survives a bad network: where it broke, it goes on.

Counts bytes and believes no header that contradicts the descriptor. Hashing is the consumer's.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from imgfs.errors import RegistryFailed, RemoteError, TimedOut, Unreachable, VerificationFailed
from imgfs.registry.body import refuse_kind
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange

if TYPE_CHECKING:
    from imgfs.registry.transport import Answer

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
END_SECONDS = 2.0
"""How long to wait for the end of a body whose bytes are all there."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `end` (exclusive) of a blob of `size`."""

    start: int
    end: int
    size: int

    @property
    def whole(self) -> bool:
        """Whether it is the blob."""
        return self.start == 0 and self.end == self.size


class BlobStream(AsyncIterator[bytes]):
    """The bytes of `span`, exactly. `open` it first, `aclose` it always; one task at a time.

    A cut, a reset, a short body and a stall are resumed by Range at the byte reached. Bytes gained reset the count of
    tries; those of a body given up for its pace do not.
    """

    def __init__(self, exchange: Exchange, call: Call, span: Span, media_type: str) -> None:
        self._exchange = exchange
        self._call = call
        self._span = span
        self._media_type = media_type
        self._tries = exchange.tries(call.host)
        self._answer: Answer | None = None
        self._position = span.start
        self._gained = 0
        self._crumbs = 0
        self._skip = 0
        self._etag = ""
        self._ranges = True
        """Whether this registry can still be asked for ranges of this blob."""

    async def open(self) -> None:
        """Send the request, so that refusals are raised before the first byte is asked for."""
        if self._position < self._span.end:
            self._answer = await self._ask()

    async def __anext__(self) -> bytes:
        while self._position < self._span.end:
            if self._answer is None:
                self._answer = await self._ask()
            try:
                piece = await self._read(self._answer)
            except (Unreachable, TimedOut) as error:
                await self._broken(error)
                continue
            if piece:
                return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection unless its answer was read to the end; nothing is drained."""
        answer, self._answer = self._answer, None
        if answer is not None:
            await answer.aclose()

    async def _read(self, answer: Answer) -> bytes:
        piece = await answer.read()
        if not piece:
            raise Unreachable(
                f"{self._call.subject}: {answer.authority} ended at byte {self._position} of {self._span.end}; "
                "read again"
            )
        if self._skip:
            skipped = min(self._skip, len(piece))
            self._skip -= skipped
            piece = piece[skipped:]
        rest = self._span.end - self._position
        if len(piece) >= rest:
            await self._end(answer, len(piece) - rest)
            piece = piece[:rest]
        self._position += len(piece)
        self._gained += len(piece)
        return piece

    async def _end(self, answer: Answer, excess: int) -> None:
        """Check that nothing follows the last byte, and give the connection back; before that byte is handed out."""
        if answer.status == 200 and self._span.end < self._span.size:
            return
        if not excess:
            with trio.move_on_after(END_SECONDS), suppress(RemoteError):
                excess = len(await answer.read())
        if excess:
            raise VerificationFailed(
                f"{self._call.subject}: {answer.authority} sends more than the {self._span.size} bytes "
                "of its descriptor; refused, pull from another registry"
            )

    async def _broken(self, error: Unreachable | TimedOut) -> None:
        """Drop the connection, and wait for another try or raise `error`."""
        gained = self._progressed() and self._answer is not None and not self._answer.slow
        await self.aclose()
        self._gained = 0
        await self._tries.again(error, gained)

    def _progressed(self) -> bool:
        """Whether enough came since the last break; a registry must not feed a reader crumbs for ever."""
        limits = self._exchange.limits
        self._crumbs += 0 < self._gained < limits.crumb
        return self._gained >= limits.crumb or (self._gained > 0 and self._crumbs <= limits.crumbs)

    async def _ask(self) -> Answer:
        answer = await self._exchange.open(self._ranged(), self._tries)
        try:
            usable = await self._judge(answer)
        except BaseException:
            await answer.aclose()
            raise
        if not usable:
            await answer.aclose()
            self._ranges = False
            return await self._ask()
        etag = answer.headers.get("etag", "")
        self._etag = etag if etag.startswith('"') else ""
        return answer

    def _ranged(self) -> Call:
        whole = self._position == 0 and self._span.whole
        if whole or not self._ranges:
            return self._call
        headers = {"Range": f"bytes={self._position}-{self._span.end - 1}"}
        if self._etag:
            headers["If-Range"] = self._etag
        return replace(self._call, headers=headers)

    async def _judge(self, answer: Answer) -> bool:
        """Whether the answer's bytes are those asked for; False asks again, without Range."""
        self._skip = 0
        if answer.status == 200:
            await self._judge_whole(answer)
            return True
        if answer.status == 206 and self._ranges and self._judge_range(answer):
            return True
        if self._ranges and self._cheap:
            return False
        raise VerificationFailed(
            f"{self._call.subject}: {answer.authority} answered {answer.status} with another range than "
            f"{self._position}-{self._span.end - 1} of {self._span.size}; refused, pull from another registry"
        )

    async def _judge_whole(self, answer: Answer) -> None:
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/html" and not self._media_type.startswith("text/"):
            raise await refuse_kind(answer, self._call.subject)
        if answer.length not in {None, self._span.size}:
            raise VerificationFailed(
                f"{self._call.subject}: {answer.authority} has {answer.length} bytes, the descriptor says "
                f"{self._span.size}; refused, pull from another registry"
            )
        if not self._cheap:
            raise RegistryFailed(
                f"{self._call.subject}: {answer.authority} ignores Range at byte {self._position} of "
                f"{self._span.size}; pull from a registry that serves ranges"
            )
        self._skip = self._position

    @property
    def _cheap(self) -> bool:
        """Whether a full answer may be taken and discarded up to the position."""
        return self._position <= max(self._span.size // 2, self._exchange.limits.discard)

    def _judge_range(self, answer: Answer) -> bool:
        found = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
        if found is None:
            return False
        first, last = int(found[1]), int(found[2])
        return (
            first == self._position
            and first <= last < self._span.end
            and found[3] in {"*", str(self._span.size)}
            and answer.length in {None, last - first + 1}
        )
