"""A range of a blob as a stream that survives a bad network: where it broke it goes on, elsewhere if it can.

Counts bytes and believes no header that contradicts the descriptor. Hashing is the consumer's.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from imgfs.aio.fair import FairLimiter
from imgfs.errors import ImgfsError, RangeIgnored, RemoteError, TimedOut, Unreachable, VerificationFailed
from imgfs.registry.body import refuse_kind
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts import Endpoint
from imgfs.registry.retry import Told, nobody
from imgfs.registry.senders import Sent
from imgfs.registry.turns import FAULTS, Turns

if TYPE_CHECKING:
    from imgfs.registry.answer import Answer

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

    A cut, a reset, a short body and a stall are resumed by Range at the byte reached: at the next host, or at the same
    one where there is no other. Bytes gained reset the count of tries; those of a body given up for its pace do not.
    `call` makes the request to a host, `gate` bounds the streams to one, `sent` gets everybody who sent bytes, and
    `failed` is told of each try that fails.
    """

    def __init__(
        self,
        exchange: Exchange,
        turns: Turns,
        call: Callable[[Endpoint], Call],
        span: Span,
        media_type: str,
        gate: Callable[[Endpoint], FairLimiter],
        sent: Sent,
        failed: Told = nobody,
    ) -> None:
        self._exchange = exchange
        self._turns = turns
        self._call_to = call
        self._span = span
        self._media_type = media_type
        self._gate = gate
        self._sent = sent
        self._call = call(turns.current)
        self._failed = failed
        self._tries = exchange.tries(turns.current.host, turns, failed)
        self._entered: FairLimiter | None = None
        self._answer: Answer | None = None
        self._position = span.start
        self._gained = 0
        self._crumbs = 0
        self._skip = 0
        self._etag = ""
        self._ranges = True
        """Whether this host can still be asked for ranges of this blob."""

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
            except VerificationFailed as error:
                await self._drop()
                self._tries.count(error)
                self._leave(error)
                continue
            if piece:
                return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection unless its answer was read to the end; nothing is drained."""
        self._exit()
        await self._drop()

    async def _drop(self) -> None:
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
        if not self._gained:
            self._sent.add(self._turns.current, answer.authority)
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
                "of its descriptor; refused"
            )

    async def _broken(self, error: Unreachable | TimedOut) -> None:
        """Drop the connection, and turn to the next host or wait for another try; or raise what `error` means."""
        gained = self._progressed() and self._answer is not None and not self._answer.slow
        await self._drop()
        self._gained = 0
        if gained and self._turns.pass_on(error):
            self._tries.count(error)
            self._exit()
            return
        try:
            await self._tries.again(error, gained=gained)
        except (Unreachable, TimedOut):
            self._leave(error)

    def _leave(self, error: ImgfsError) -> None:
        self._turns.leave(error)
        self._exit()

    async def _enter(self) -> None:
        """Wait until the host whose turn it is has room for a stream, and begin anew with it."""
        if self._entered is None:
            gate, before = self._gate(self._turns.current), trio.current_time()
            await gate.acquire(self._call.repository)
            self._entered = gate
            self._turns.waited(trio.current_time() - before)
            self._call = self._call_to(self._turns.current)
            self._tries = self._exchange.tries(self._turns.current.host, self._turns, self._failed)
            self._etag, self._ranges = "", True

    def _exit(self) -> None:
        gate, self._entered = self._entered, None
        if gate is not None:
            gate.release(self._call.repository)

    def _progressed(self) -> bool:
        """Whether enough came since the last break; a registry must not feed a reader crumbs for ever."""
        limits = self._exchange.limits
        self._crumbs += 0 < self._gained < limits.crumb
        return self._gained >= limits.crumb or (self._gained > 0 and self._crumbs <= limits.crumbs)

    async def _ask(self) -> Answer:
        """The answer of the first host whose bytes can be used."""
        while True:
            await self._enter()
            try:
                answer = await self._ask_current()
            except FAULTS as error:
                self._leave(error)
            else:
                self._turns.well()
                return answer

    async def _ask_current(self) -> Answer:
        answer = await self._exchange.open(self._ranged(), self._tries)
        try:
            usable = await self._judge(answer)
        except BaseException as error:
            await answer.aclose()
            if isinstance(error, ImgfsError):
                self._tries.count(error)
            raise
        if not usable:
            await answer.aclose()
            self._ranges = False
            return await self._ask_current()
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
            f"{self._call.subject}: {answer.authority} answered {answer.status} where bytes {self._position}-"
            f"{self._span.end - 1} of {self._span.size} were asked for; refused, pull from another registry"
        )

    async def _judge_whole(self, answer: Answer) -> None:
        if answer.media_type == "text/html" and not self._media_type.startswith("text/"):
            raise await refuse_kind(answer, self._call.subject)
        if answer.length not in {None, self._span.size}:
            raise VerificationFailed(
                f"{self._call.subject}: {answer.authority} has {answer.length} bytes, the descriptor says "
                f"{self._span.size}; refused, pull from another registry"
            )
        if not self._cheap:
            raise RangeIgnored(
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
