"""What is asked for of a blob, and whether an answer is that (RFC 9110, 14): Range, If-Range, Content-Range, length.

Decides for one host; when to ask which one is the stream's business (blob). Believes no header that contradicts the
descriptor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from imgfs.errors import RangeIgnored, VerificationFailed
from imgfs.oci.descriptor import Descriptor
from imgfs.registry.call import Call
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.http.body import refuse_kind

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")


@dataclass(frozen=True, slots=True)
class BlobRange:
    """Bytes `start` to `end` (exclusive) of a blob, of one repository of the registry `host`."""

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
        """What messages about it begin with."""
        return f"{self.host}/{self.repository}@{self.descriptor.digest}"

    def call(self, where: Endpoint) -> Call:
        """What asks `where` for the blob."""
        url = where.url(self.repository, "blobs", self.descriptor.digest)
        return Call("blob", where, self.repository, url, self.subject, expects=frozenset({200, 206, 416}))


class RangeRequests:
    """The requests to one host for what is left of `wanted`, and what their answers are worth.

    Where a host serves no ranges, the whole may be taken and discarded up to the position: `discard` bytes at most, or
    half of the blob.
    """

    def __init__(self, wanted: BlobRange, where: Endpoint, discard: int) -> None:
        self._wanted = wanted
        self._call = wanted.call(where)
        self._discard_max = max(wanted.size // 2, discard)
        self._etag = ""
        self._serves_ranges = True
        """As far as is known."""

    def call(self, position: int) -> Call:
        """What asks for the bytes from `position` on, or for all where this host serves no ranges."""
        wanted = self._wanted
        is_all = position == 0 and wanted.end == wanted.size
        if is_all or not self._serves_ranges:
            return self._call
        headers = {"Range": f"bytes={position}-{wanted.end - 1}"}
        if self._etag:
            headers["If-Range"] = self._etag
        return replace(self._call, headers=headers)

    async def judge(self, answer: Answer, position: int) -> int | None:
        """How many bytes of `answer` come before `position`; None: ask again, now without Range.

        Raises RangeIgnored where they are too many, Malformed for a page meant for people, and VerificationFailed for
        anything else that is not what was asked for.
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
        """Whether the Content-Range is within the rest, from its beginning on; it may be less."""
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
