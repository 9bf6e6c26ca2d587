"""Small bodies, read completely and within a limit, and inflated within it if the registry compressed them."""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING

import trio

from imgfs.errors import Malformed, RemoteError, TooLarge, Unreachable

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

SHOWN = 200
"""Number of bytes that the log shows of an answer with the wrong Content-Type."""
DRAIN_MAX = 16 << 10
DRAIN_SECONDS = 2.0
_TELL = "; report it to the registry's operator, or pull another image"

_log = logging.getLogger("imgfs.registry")


async def read_all(answer: Answer, limit: int, subject: str) -> bytes:
    """Return the body of `answer`, and close it.

    Raises TooLarge as soon as the body is known to exceed `limit` bytes, Unreachable if it is shorter than its
    Content-Length, TimedOut if it stalls, and Malformed if its Content-Encoding is broken.
    """
    try:
        if (answer.length or 0) > limit:
            raise TooLarge(
                f"{subject}: {answer.authority} announced {answer.length} bytes, the limit is {limit}{_TELL}"
            )
        body = bytearray()
        while piece := await answer.read():
            body += piece
            if len(body) > limit:
                raise TooLarge(f"{subject}: {answer.authority} sent more than the limit of {limit} bytes{_TELL}")
    finally:
        await answer.aclose()
    if answer.length is not None and len(body) < answer.length:
        raise Unreachable(f"{subject}: {answer.authority} sent {len(body)} of {answer.length} bytes; read again")
    return _decoded(
        bytes(body),
        answer.headers.get("content-encoding", "identity"),
        limit,
        f"{subject}: what {answer.authority} sent",
    )


async def drain(answer: Answer) -> bytes:
    """Return the first bytes of a body, up to DRAIN_MAX within DRAIN_SECONDS, and close the answer.

    The connection stays open if this read the whole body.
    """
    body = b""
    try:
        with trio.move_on_after(DRAIN_SECONDS):
            while len(body) < DRAIN_MAX and (piece := await answer.read()):
                body += piece
    except RemoteError:
        pass  # the caller needs the status, which is known
    finally:
        await answer.aclose()
    return body[:DRAIN_MAX]


async def refuse_kind(answer: Answer, subject: str) -> Malformed:
    """Log the beginning of an answer with the wrong Content-Type, close it, and return the error to raise.

    Neither the log nor the error contains anything of an answer that may echo a login.
    """
    start, kind = (await drain(answer))[:SHOWN], answer.headers.get("content-type", "")[:100]
    if answer.request.confidential:
        start, kind = b"(not shown: the request held a login)", "(not shown)"
    _log.warning("answer of the wrong type", extra={"host": answer.authority, "content_type": kind, "start": start})
    return Malformed(
        f"{subject}: {answer.authority} answered with Content-Type {kind!r}; is it a login page or a proxy? See the log"
    )


def _decoded(body: bytes, encoding: str, limit: int, what: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise Malformed(f"{what} has Content-Encoding {encoding[:40]!r}, expected none; tell the registry's operator")
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise Malformed(f"{what} is no {encoding}; try again later") from None
    if len(plain) > limit:
        raise TooLarge(f"{what} inflates to more than the limit of {limit} bytes{_TELL}")
    if not inflater.eof:
        raise Malformed(f"{what} is incomplete {encoding}; try again later")
    return plain
