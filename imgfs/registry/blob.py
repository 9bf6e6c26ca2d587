"""A range of a blob as a stream that survives a bad network: where it broke it goes on, elsewhere if it can.

Counts bytes; whether an answer is what was asked for, `ranges` says. Hashing is the consumer's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from imgfs.aio.fair import FairLimiter
from imgfs.errors import ImgfsError, RemoteError, TimedOut, Unreachable, VerificationFailed
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.hosts.senders import Sent
from imgfs.registry.hosts.turns import FAULTS, Turns
from imgfs.registry.ranges import BlobRange, RangeRequests
from imgfs.registry.retry import Told, Tries, nobody

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

END_SECONDS = 2.0
"""How long to wait for the end of a body whose bytes are all there."""


class BlobStream(AsyncIterator[bytes]):
    """The bytes that are `wanted`, exactly. `open` it first, `aclose` it always; one task at a time.

    A cut, a reset, a short body and a stall are resumed by Range at the byte reached: at the next host, or at the same
    one where there is no other. Bytes gained reset the count of tries; those of a body given up for its pace do not.
    `gate` bounds the streams to a host, `sent` gets everybody who sent bytes, and `failed` is told of each try that
    fails.
    """

    def __init__(
        self,
        exchange: Exchange,
        turns: Turns,
        wanted: BlobRange,
        gate: Callable[[Endpoint], FairLimiter],
        sent: Sent,
        failed: Told = nobody,
    ) -> None:
        self._exchange = exchange
        self._turns = turns
        self._wanted = wanted
        self._gate = gate
        self._sent = sent
        self._failed = failed
        self._tries, self._requests = self._begun_with(turns.current)
        self._entered: FairLimiter | None = None
        self._answer: Answer | None = None
        self._position = wanted.start
        self._gained = 0
        """Bytes of the answer that were handed out."""
        self._crumbs = 0
        """Breaks after so few bytes that they are hardly progress."""
        self._skip = 0
        """Bytes of the answer that come before the position, and are still to be discarded."""

    async def open(self) -> None:
        """Send the request, so that refusals are raised before the first byte is asked for."""
        if self._position < self._wanted.end:
            self._answer = await self._ask()

    async def __anext__(self) -> bytes:
        while self._position < self._wanted.end:
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
        answer, self._answer, self._gained = self._answer, None, 0
        if answer is not None:
            await answer.aclose()

    async def _read(self, answer: Answer) -> bytes:
        piece = await answer.read()
        if not piece:
            raise Unreachable(
                f"{self._wanted.subject}: {answer.authority} ended at byte {self._position} of {self._wanted.end}; "
                "read again"
            )
        if not self._gained:
            self._sent.add(self._turns.current, answer.authority)
        if self._skip:
            skipped = min(self._skip, len(piece))
            self._skip -= skipped
            piece = piece[skipped:]
        rest = self._wanted.end - self._position
        if len(piece) >= rest:
            await self._end(answer, len(piece) - rest)
            piece = piece[:rest]
        self._position += len(piece)
        self._gained += len(piece)
        self._turns.patience.gained(len(piece) / self._exchange.limits.gain_rate)
        if self._position == self._wanted.end:
            self._tries.completed()
        return piece

    async def _end(self, answer: Answer, excess: int) -> None:
        """Check that nothing follows the last byte, and give the connection back; before that byte is handed out."""
        if answer.status == 200 and self._wanted.end < self._wanted.size:
            return
        if not excess:
            with trio.move_on_after(END_SECONDS), suppress(RemoteError):
                excess = len(await answer.read())
        if excess:
            raise VerificationFailed(
                f"{self._wanted.subject}: {answer.authority} sends more than the {self._wanted.size} bytes "
                "of its descriptor; refused"
            )

    async def _broken(self, error: Unreachable | TimedOut) -> None:
        """Drop the connection, and turn to the next host or wait for another try; or raise what `error` means."""
        progressed = self._count_progress() and self._answer is not None and not self._answer.slow
        await self._drop()
        if progressed and self._turns.pass_on(error):
            self._tries.count(error)
            self._exit()
            return
        try:
            await self._tries.again(error, gained=progressed)
        except (Unreachable, TimedOut):
            self._leave(error)

    def _leave(self, error: ImgfsError) -> None:
        self._turns.leave(error)
        self._exit()

    async def _enter(self) -> None:
        """Wait until the host whose turn it is has room for a stream, and begin anew with it."""
        if self._entered is None:
            gate = self._gate(self._turns.current)
            await gate.acquire(self._wanted.repository)
            self._entered = gate
            self._turns.asked()
            self._tries, self._requests = self._begun_with(self._turns.current)

    def _begun_with(self, where: Endpoint) -> tuple[Tries, RangeRequests]:
        tries = self._exchange.tries(where.host, self._turns, self._failed)
        return tries, RangeRequests(self._wanted, where, self._exchange.limits.discard)

    def _exit(self) -> None:
        gate, self._entered = self._entered, None
        if gate is not None:
            gate.release(self._wanted.repository)

    def _count_progress(self) -> bool:
        """Whether enough came of the answer, now that it breaks; a registry must not feed a reader crumbs for ever."""
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
        while True:
            answer = await self._exchange.open(self._requests.call(self._position), self._tries)
            try:
                skip = await self._requests.judge(answer, self._position)
            except BaseException as error:
                await answer.aclose()
                if isinstance(error, ImgfsError):
                    self._tries.count(error)
                raise
            if skip is not None:
                self._skip = skip
                return answer
            await answer.aclose()
