"""The upload of one blob (distribution-spec, "Pushing blobs"), and how the answers to its requests are read."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from imgfs.errors import AccessDenied, NotFound, RegistryFailed, RemoteError, VerificationFailed
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest, is_digest
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange, Unsure
from imgfs.registry.hosts.endpoint import check_url
from imgfs.registry.http.body import drain
from imgfs.registry.http.request import Outgoing
from imgfs.registry.lists import with_query
from imgfs.registry.push.sessions import Sessions, UploadTarget
from imgfs.registry.refusals import error_code
from imgfs.registry.retry import FailureCallback, Tries, ignore_failure

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

DONE = frozenset({200, 201, 202, 204})
NO_SUCH_METHOD = frozenset({405, 501})
JUDGED = DONE | NO_SUCH_METHOD | {400, 413, 415, 416}
"""Statuses that uploads and manifests handle themselves. The exchange handles all others."""
ENDED = DONE | NO_SUCH_METHOD | {400, 404}
"""Expected answers to the request to end an upload."""
_RANGE = re.compile(r"(?:bytes[= ])?0-(\d{1,19})\Z")
Read = Callable[[int, int], Outgoing]
"""Returns the bytes of a blob from one offset to another. May be called more than once for the same bytes."""
_WRONG = frozenset({"DIGEST_INVALID", "SIZE_INVALID"})


def last_received(answer: Answer) -> int | None:
    """Return the offset of the last byte that the registry has, from its Range header, or None without one."""
    found = _RANGE.match(answer.headers.get("range", "").strip())
    return int(found[1]) if found else None


def following(call: Call, answer: Answer) -> str | None:
    """Return the URL at which an upload continues, from the Location header, or None without one.

    Raises RegistryFailed for a URL that must not be followed: neither http nor https, or a change from https to http. A
    registry behind a proxy may write http for its own URLs; the scheme of the endpoint is kept for these.
    """
    location = answer.headers.get("location", "")
    if not location:
        return None
    where, what = call.endpoint, f"{call.subject}: where registry {call.host} wants it"
    try:
        joined = urljoin(answer.request.url, location)
        authority = urlsplit(joined).netloc.lower()
    except ValueError:
        joined = authority = ""
    if authority == where.authority.lower():
        joined = urlsplit(joined)._replace(scheme=where.scheme).geturl()
    url = check_url(joined, answer.request.url, what)
    if where.ns and where.owns(url) and "ns=" not in urlsplit(url).query:
        url = with_query(url, ns=where.ns)
    return url


async def closed(answer: Answer) -> str:
    """Drain and close an answer, and return the registry's error code."""
    return error_code(await drain(answer))


def another_digest(answer: Answer, digest: Digest) -> Digest | None:
    """Return the digest under which the registry stored an object, if it differs from `digest`; else None.

    A digest of another algorithm cannot be compared and counts as None.
    """
    stated = answer.headers.get("docker-content-digest", "")
    if not is_digest(stated) or stated == digest or Digest(stated).algorithm != digest.algorithm:
        return None
    return Digest(stated)


def refusal(call: Call, answer: Answer, code: str) -> RegistryFailed:
    """Return the error for a status of JUDGED that ends a push."""
    sent = call.outgoing.length if call.outgoing is not None else 0
    said = f"{call.subject}: registry {call.host} answered {answer.status}{f' {code}' if code else ''}"
    if answer.status in NO_SUCH_METHOD or code == "UNSUPPORTED":
        advice = "push to a registry that does, or to what it mirrors"
        if call.endpoint.mirror:
            advice = f"in hosts.toml of {call.endpoint.ns} give this mirror capabilities without push"
        return RegistryFailed(f"{said} to a push: it takes none; {advice}")
    if answer.status == 413:
        return RegistryFailed(f"{said} to {sent} bytes; have its operator raise the limit of requests")
    return RegistryFailed(f"{said} to a push; check what it accepts, and try again")


@dataclass(frozen=True, slots=True)
class Sending:
    """A blob to send. `read` returns its bytes.

    `at` is called with the number of bytes that the registry has, whenever that is known. It may be less than was sent.
    `failed` is called with each failed attempt, also if a later attempt succeeds.
    """

    descriptor: Descriptor
    read: Read
    at: Callable[[int], object]
    failed: FailureCallback = ignore_failure


class Upload:
    """Sends one blob. Call `run` once.

    `template` is the call that begins an upload; the other calls are derived from it. `is_there` returns whether the
    registry has the blob.

    A blob of at most `limits.chunk` bytes is sent in one request (distribution-spec, "POST then PUT"), a larger blob in
    parts of that size ("Pushing a blob in chunks"). After a failure, the registry is asked how many bytes it has, and
    the rest is sent. If the registry accepts no parts or cannot tell, the blob is sent again from the beginning.
    """

    def __init__(
        self,
        exchange: Exchange,
        sessions: Sessions,
        template: Call,
        blob: Sending,
        is_there: Callable[[], Awaitable[bool]],
    ) -> None:
        self._exchange = exchange
        self._sessions = sessions
        self._template = template
        self._size = blob.descriptor.size
        self._digest = blob.descriptor.digest
        self._read = blob.read
        self._is_there = is_there
        self._at = blob.at
        self._tries = exchange.tries(template.host, failed=blob.failed)
        self._target = UploadTarget(template.endpoint.base, template.repository, blob.descriptor.digest)
        self._chunk = exchange.limits.chunk
        self._url = ""
        """The URL at which the upload continues; "" if none has begun."""
        self._offset: int | None = 0
        """The number of bytes that the registry has; None if it must be asked."""
        self._reached = 0
        self._is_whole = False
        """Whether the registry refused parts of this blob."""

    async def run(self) -> None:
        """Send the blob; on return the registry has it. An interrupted upload is continued before a spare one is used.

        Raises VerificationFailed if the registry states another digest, RegistryFailed also if it accepts no pushes,
        and what every call raises. After a failure or a cancellation, the next upload of the blob continues from there.
        """
        if kept := await self._sessions.get(self._target):
            self._url, self._offset = kept, None
        while not await self._step():
            pass
        await self._sessions.drop(self._target)
        self._at(self._size)

    async def _step(self) -> bool:
        """Send the next request. Return whether it was the last."""
        if not self._url:
            await self._begin()
            return False
        try:
            if self._offset is None:
                await self._ask_offset()
            elif self._offset == self._size or self._goes_at_once(self._offset):
                return await self._finish(self._offset)
            else:
                await self._send_part(self._offset)
        except Unsure:
            self._offset = None
            return await self._is_there()
        except NotFound as error:
            self._is_whole = self._is_whole or self._offset == 0
            await self._lose(RegistryFailed(error.message))
        return False

    @property
    def _is_undivided(self) -> bool:
        """Whether the registry does not accept parts."""
        return self._is_whole or self._template.endpoint.base in self._sessions.undivided

    def _goes_at_once(self, start: int) -> bool:
        return start == 0 and (self._size <= self._chunk or self._is_undivided)

    async def _begin(self) -> None:
        if spare := self._sessions.take(self._target):
            await self._began_at(spare)
            return
        answer = await self._exchange.open(self._template, self._tries)
        code = await closed(answer)
        if answer.status not in DONE:
            raise refusal(self._template, answer, code)
        url = following(self._template, answer)
        if url is None:
            raise RegistryFailed(
                f"{self._template.subject}: registry {self._template.host} begins an upload without a Location; "
                "check that it is a registry"
            )
        least = answer.headers.get("oci-chunk-min-length", "")
        if least.isascii() and least.isdigit():
            self._chunk = max(self._chunk, int(least))
        await self._began_at(url)

    async def _ask_offset(self) -> None:
        """Ask how many bytes have arrived. If the registry cannot tell, begin a new upload."""
        if self._is_undivided:
            await self._forget()
            return
        try:
            answer = await self._exchange.open(self._call("GET", self._url), self._tries)
        except (NotFound, AccessDenied, RegistryFailed):
            await self._forget()  # the failed request was counted already, so this is no further failure
            return
        await closed(answer)
        last = last_received(answer)
        # Some registries report `0-0` both for no byte and for one byte. One byte is not worth resuming.
        if answer.status not in DONE or not last or last >= self._size:
            await self._forget()
            return
        self._url = following(self._template, answer) or self._url
        self._arrived(last + 1)

    async def _send_part(self, start: int) -> None:
        end = min(start + self._chunk, self._size)
        call = self._sending("PATCH", self._url, self._read(start, end))
        answer = await self._exchange.open(replace(call, headers={"Content-Range": f"{start}-{end - 1}"}), self._tries)
        code = await closed(answer)
        if answer.status in DONE:
            await self._go_on_at(following(call, answer) or self._url, lasting=True)
            last = last_received(answer)
            arrived = end if last is None else last + 1
            if start < arrived <= end:
                self._arrived(arrived)
                return
            await self._count(_unfit(call, answer))
            self._offset = None
        elif answer.status == 416 and start:
            await self._count(_unfit(call, answer))
            self._offset = None
        elif answer.status in NO_SUCH_METHOD:
            self._sessions.undivided.add(self._template.endpoint.base)
            await self._forget()
        elif answer.status in {400, 415, 416}:
            self._is_whole = start == 0
            await self._lose(refusal(call, answer, code))
        else:
            raise refusal(call, answer, code)

    async def _finish(self, start: int) -> bool:
        """Send the rest and the digest. Return whether the registry accepted the blob."""
        call = self._sending("PUT", with_query(self._url, digest=self._digest), self._read(start, self._size))
        answer = await self._exchange.open(call, self._tries)
        code = await closed(answer)
        if answer.status in DONE:
            if other := another_digest(answer, self._digest):
                raise self._wrong(f"stored it as {other}")
            return True
        if code in _WRONG:
            await self._forget()
            raise self._wrong(f"answered {answer.status} {code}")
        if answer.status == 416:
            await self._count(_unfit(call, answer))
            self._offset = None
        elif answer.status == 400 and start:
            await self._lose(refusal(call, answer, code))
        else:
            raise refusal(call, answer, code)
        return False

    def _wrong(self, said: str) -> VerificationFailed:
        return VerificationFailed(
            f"{self._template.subject}: registry {self._template.host} {said}, so other bytes arrived than were sent; "
            "push again, and check the proxies on the way"
        )

    def _call(self, method: str, url: str) -> Call:
        return replace(self._template, method=method, url=url, expects=JUDGED)

    def _sending(self, method: str, url: str, outgoing: Outgoing) -> Call:
        watched = replace(outgoing, pieces=lambda: _Watched(outgoing.pieces(), self._tries))
        return replace(self._call(method, url), outgoing=watched, repeatable=False)

    async def _began_at(self, url: str) -> None:
        await self._go_on_at(url, lasting=False)
        self._offset = 0
        self._at(0)

    async def _go_on_at(self, url: str, *, lasting: bool) -> None:
        self._url = url
        await self._sessions.keep(self._target, url, lasting=lasting)

    def _arrived(self, offset: int) -> None:
        """Record that the registry has the blob up to `offset`. Enough new bytes reset the count of attempts."""
        self._offset = offset
        self._at(offset)
        gained = offset - self._reached
        if gained >= self._exchange.limits.crumb or (gained > 0 and offset == self._size):
            self._reached = offset
            self._tries.progressed()

    async def _count(self, error: RemoteError) -> None:
        """Count a failure, and wait a moment; raises `error` at the limit."""
        await self._tries.again(error)

    async def _lose(self, error: RegistryFailed) -> None:
        """Abandon this upload, so that the next step begins a new one. Count the failure as `_count` does."""
        await self._forget()
        await self._count(error)

    async def _forget(self) -> None:
        await self._sessions.drop(self._target)
        self._url, self._offset = "", 0


class _Watched(AsyncIterator[bytes]):
    """The pieces of a request body. Each piece that is sent resets the time without progress."""

    def __init__(self, pieces: AsyncIterator[bytes], tries: Tries) -> None:
        self._pieces = pieces
        self._tries = tries

    async def __anext__(self) -> bytes:
        self._tries.moves()
        return await anext(self._pieces)


def _unfit(call: Call, answer: Answer) -> RegistryFailed:
    return RegistryFailed(
        f"{call.subject}: registry {call.host} answered {answer.status} and cannot go on with an upload where it is; "
        "try again later"
    )
