"""A range of a blob as a stream that resumes by Range where it broke, at another host if there is one.

This module counts bytes and checks that each answer is what was asked for (RFC 9110, 14). It believes no header that
contradicts the descriptor. The caller hashes.
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
from imgfs.oci.descriptor import Descriptor
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.hosts.health import BlobSenders
from imgfs.registry.hosts.turns import FAULTS, Turns
from imgfs.registry.http.body import refuse_kind
from imgfs.registry.retry import FailureCallback, Tries, ignore_failure

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

END_SECONDS = 2.0
"""Seconds to wait for the end of a body after its last byte."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")


@dataclass(frozen=True, slots=True)
class BlobRange:
    """Bytes `start` to `end` (exclusive) of a blob in one repository of the registry `host`."""

    host: str
    repository: str
    descriptor: Descriptor
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the whole blob."""
        return self.descriptor.size

    @property
    def subject(self) -> str:
        """The beginning of error messages about the blob."""
        return f"{self.host}/{self.repository}@{self.descriptor.digest}"

    def call(self, where: Endpoint) -> Call:
        """Return the call that asks `where` for the blob."""
        url = where.url(self.repository, "blobs", self.descriptor.digest)
        return Call("blob", where, self.repository, url, self.subject, expects=frozenset({200, 206, 416}))


class RangeRequests:
    """Builds the requests to one host for the rest of `wanted`, and checks their answers.

    If the host serves no ranges, the whole blob may be read and discarded up to the position: at most `discard` bytes
    or half of the blob.
    """

    def __init__(self, wanted: BlobRange, where: Endpoint, discard: int) -> None:
        self._wanted = wanted
        self._call = wanted.call(where)
        self._discard_max = max(wanted.size // 2, discard)
        self._etag = ""
        self._serves_ranges = True
        """False once an answer has shown that the host does not serve ranges."""

    def call(self, position: int) -> Call:
        """Return the call for the bytes from `position` on, or for the whole blob if this host serves no ranges."""
        wanted = self._wanted
        is_all = position == 0 and wanted.end == wanted.size
        if is_all or not self._serves_ranges:
            return self._call
        headers = {"Range": f"bytes={position}-{wanted.end - 1}"}
        if self._etag:
            headers["If-Range"] = self._etag
        return replace(self._call, headers=headers)

    async def judge(self, answer: Answer, position: int) -> int | None:
        """Return how many bytes of `answer` precede `position`, or None if the call must be repeated without Range.

        Raises RangeIgnored if these are too many, Malformed for an HTML page, and VerificationFailed for any other
        answer that does not match the request.
        """
        skip = await self._bytes_before(answer, position)
        if skip is None:
            self._serves_ranges = False
            return None
        etag = answer.headers.get("etag", "")
        self._etag = etag if etag.startswith('"') else ""
        return skip

    async def _bytes_before(self, answer: Answer, position: int) -> int | None:
        wanted = self._wanted
        if answer.status == 200:
            await self._check_whole(answer, position)
            return position
        if answer.status == 206 and self._serves_ranges and self._is_rest(answer, position):
            return 0
        if self._serves_ranges and position <= self._discard_max:
            return None
        raise VerificationFailed(
            f"{wanted.subject}: {answer.authority} answered {answer.status} where bytes {position}-{wanted.end - 1} of "
            f"{wanted.size} were asked for; refused, pull from another registry"
        )

    async def _check_whole(self, answer: Answer, position: int) -> None:
        wanted = self._wanted
        if answer.media_type == "text/html" and not wanted.descriptor.media_type.startswith("text/"):
            raise await refuse_kind(answer, wanted.subject)
        if answer.length not in {None, wanted.size}:
            raise VerificationFailed(
                f"{wanted.subject}: {answer.authority} has {answer.length} bytes, the descriptor says {wanted.size}; "
                "refused, pull from another registry"
            )
        if position > self._discard_max:
            raise RangeIgnored(
                f"{wanted.subject}: {answer.authority} ignores Range at byte {position} of {wanted.size}; "
                "pull from a registry that serves ranges"
            )

    def _is_rest(self, answer: Answer, position: int) -> bool:
        """Whether the Content-Range begins at `position` and ends within the wanted range. It may be shorter."""
        found = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
        if found is None:
            return False
        first, last = int(found[1]), int(found[2])
        return (
            first == position
            and first <= last < self._wanted.end
            and found[3] in {"*", str(self._wanted.size)}
            and answer.length in {None, last - first + 1}
        )


class BlobStream(AsyncIterator[bytes]):
    """An iterator over exactly the `wanted` bytes. Call `open` first, and `aclose` always; use it from one task.

    After a cut, a reset, a short body or a stall, the stream resumes by Range at the byte that it reached: at the next
    host, or at the same host if there is no other. New bytes reset the count of attempts, except those of a body that
    came too slowly. `gate` returns the limiter of streams from a host. `senders` records the hosts that sent bytes.
    `failed` is called with each failed attempt.
    """

    def __init__(
        self,
        exchange: Exchange,
        turns: Turns,
        wanted: BlobRange,
        gate: Callable[[Endpoint], FairLimiter],
        senders: BlobSenders,
        failed: FailureCallback = ignore_failure,
    ) -> None:
        self._exchange = exchange
        self._turns = turns
        self._wanted = wanted
        self._gate = gate
        self._senders = senders
        self._failed = failed
        self._tries, self._requests = self._begun_with(turns.current)
        self._entered: FairLimiter | None = None
        self._answer: Answer | None = None
        self._position = wanted.start
        self._gained = 0
        """Bytes of the current answer that the stream has returned."""
        self._crumbs = 0
        """Number of bodies that broke after fewer than `limits.crumb` bytes."""
        self._skip = 0
        """Bytes of the current answer that precede the position and must still be discarded."""

    async def open(self) -> None:
        """Send the request, so that refusals are raised before the first byte is read."""
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
        """Close the answer without draining it. The connection is kept only if the answer was read to the end."""
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
            self._senders.add(self._turns.current, answer.authority)
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
        """Check that no byte follows the last one, before the stream returns that one. This frees the connection."""
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
        """Drop the connection, and switch to the next host or wait before another attempt. Raises at the limits."""
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
        """Wait until the current host has a free slot for a stream, and start a new count of attempts."""
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
        """Whether the broken answer counts as progress. Answers of a few bytes count a limited number of times."""
        limits = self._exchange.limits
        self._crumbs += 0 < self._gained < limits.crumb
        return self._gained >= limits.crumb or (self._gained > 0 and self._crumbs <= limits.crumbs)

    async def _ask(self) -> Answer:
        """Return the answer of the first host whose bytes are usable."""
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
