"""Faults of a registry's answers. Each one is a function from the planned Reply to another Reply."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from imgfs.testing.reply import ReceivedRequest, Reply

Action = Callable[[Reply], Reply | None]
"""A fault. None closes the connection instead of answering."""


def status(code: int, body: bytes = b"", **headers: str) -> Action:
    """Answer with this status, body and headers (`Retry_After="1"`)."""
    return lambda reply: Reply(code, body=body).headed(**headers)


def close() -> Action:
    """Close the connection before the headers."""
    return lambda reply: None


def cut_at(count: int) -> Action:
    """Announce the whole body, send `count` bytes of it, and close."""
    return lambda reply: replace(reply, cut=count)


def reset_at(count: int) -> Action:
    """Announce the whole body, send `count` bytes of it, and reset the connection."""
    return lambda reply: replace(reply, cut=count, reset=True)


def reset() -> Action:
    """Reset the connection instead of answering."""
    return lambda reply: Reply(bare=True, cut=0, reset=True)


def stall(after: int = -1) -> Action:
    """Stop after `after` bytes of the body (-1: before the headers) until released."""
    return lambda reply: replace(reply, hold=after)


def slow(action: Action) -> Action:
    """Stall before the answer until released, then do `action`."""

    def slowly(reply: Reply) -> Reply | None:
        made = action(reply)
        return None if made is None else replace(made, hold=-1)

    return slowly


def trickle() -> Action:
    """Send the body byte by byte, one byte per release."""
    return lambda reply: replace(reply, trickle=True)


def wrong_bytes() -> Action:
    """Flip every bit of the first byte."""
    return lambda reply: replace(reply, body=bytes([reply.body[0] ^ 0xFF]) + bytes(reply.body[1:]))


def longer(count: int, *, announced: bool = False) -> Action:
    """Send `count` extra bytes: in chunks, or `announced` by Content-Length."""
    return lambda reply: replace(reply, body=bytes(reply.body) + bytes(count), length=-1 if announced else None)


def wrong_length(length: int) -> Action:
    """Announce another Content-Length and send that many of the body's bytes."""
    return lambda reply: replace(reply, body=bytes(reply.body)[:length].ljust(length, b"\0"))


def no_length() -> Action:
    """Send the correct body in chunks."""
    return lambda reply: replace(reply, length=None)


def range_ignored() -> Action:
    """Answer a Range request with 200 and the whole body."""
    return lambda reply: reply.whole or reply


def content_range(value: str) -> Action:
    """Answer 206 with this Content-Range, whatever the bytes are."""
    return lambda reply: replace(reply, status=206).headed(Content_Range=value)


def to_range(action: Action) -> Action:
    """Apply `action` only to answers of Range requests."""
    return lambda reply: action(reply) if reply.status in {206, 416} else reply


def no_last_chunk() -> Action:
    """Send the correct body in chunks, and close instead of sending the last chunk."""
    return lambda reply: replace(reply, length=None, cut=len(reply.body))


def garbage(data: bytes = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n") -> Action:
    """Send data that is not HTTP, and close."""
    return lambda reply: Reply(body=data, bare=True)


def stall_in_headers() -> Action:
    """Begin the headers, and stop until released."""
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: "
    return lambda reply: Reply(body=begun, bare=True, hold=len(begun))


def trickle_headers() -> Action:
    """Send headers byte by byte, one byte per release."""
    return lambda reply: replace(reply.wire("X-Padding: " + "x" * 10_000), trickle=True)


def endless_headers() -> Action:
    """Send header lines without end."""
    return lambda reply: Reply(body=b"HTTP/1.1 200 OK\r\n" + b"X-Padding: x\r\n" * 10_000, bare=True, endless=True)


def endless_interim() -> Action:
    """Answer 100 (Continue) without end."""
    return lambda reply: Reply(body=b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, bare=True, endless=True)


def framed(framing: str) -> Action:
    """Send the correct body with this header line instead of Content-Length."""
    return lambda reply: reply.wire(framing, bytes(reply.body))


def chunked(before: bytes, behind: bytes) -> Action:
    """Send the correct body as chunked, with these bytes around it instead of chunk framing."""
    return lambda reply: reply.wire("Transfer-Encoding: chunked", before + bytes(reply.body) + behind)


def more_than_said(more: bytes) -> Action:
    """Send the correct body with its correct Content-Length, and `more` after it on the same connection."""
    return lambda reply: replace(reply, body=bytes(reply.body) + more, length=len(reply.body))


def said_to_be(encoding: str) -> Action:
    """Send the correct body with a false Content-Encoding."""
    return lambda reply: reply.headed(Content_Encoding=encoding)


def compressed() -> Action:
    """Send the body compressed, with gzip as its Content-Encoding."""
    return lambda reply: replace(reply, body=gzip.compress(bytes(reply.body), 1)).headed(Content_Encoding="gzip")


def typed(content_type: str) -> Action:
    """Send the correct body with another Content-Type."""
    return lambda reply: reply.headed(Content_Type=content_type)


def redirect(url: str, code: int = 307) -> Action:
    """Redirect the client to another URL."""
    return status(code, Location=url)


def endless() -> Action:
    """Repeat the body without end, in chunks."""
    return lambda reply: replace(reply, length=None, endless=True)


def html() -> Action:
    """Answer 200 with a login page."""
    return status(200, b"<!DOCTYPE html><title>Sign in</title>" + b" " * 400, Content_Type="text/html; charset=utf-8")


def huge(size: int, *, announced: bool = True) -> Action:
    """Answer with `size` zeros of the planned type."""
    return lambda reply: replace(reply, body=bytes(size), length=-1 if announced else None)


@dataclass(slots=True)
class Fault:
    """A scripted fault: `action` applies to requests whose `METHOD path` contains `match`, `times` times or always."""

    match: re.Pattern[str]
    action: Action
    times: int | None
    met: int = 0

    def takes(self, request: ReceivedRequest) -> bool:
        """Return whether the fault applies to this request."""
        fresh = self.times is None or self.met < self.times
        return fresh and self.match.search(f"{request.method} {request.path}") is not None
