"""Read a tar from front to back: members, and the bytes of each member as they arrive.

layers/ decodes the headers. Memory holds one header and the requested piece, whatever the headers claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgfs.archives.names import clean, link_target
from imgfs.archives.stream import PIECE, ByteStream, cut
from imgfs.errors import Malformed, TooLarge, Unsupported
from imgfs.layers.header import BLOCK, SIZE_LIMIT, ZEROS, Header, read_header
from imgfs.layers.pax import EXTENDED_TYPES, ExtendedHeaders

MEMBERS_MAX = 200_000
EXTENDED_MAX = 1 << 20
"""Bytes of extended headers before one member."""
PATH_MAX = 4096
"""Bytes of a name or of a link target."""
NAMES_MAX = 64 << 20
"""Bytes of all names together, because the reader of an archive keeps them in memory."""

_REGULAR = (b"0", b"\0", b"7")
_SYMLINK, _HARDLINK, _DIRECTORY = b"2", b"1", b"5"


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive, or a link to the name `target`. `name` is cleaned."""

    name: str
    target: str | None = None


class TarPayload:
    """The bytes of the current member. Not valid after the next member is requested."""

    def __init__(self, stream: ByteStream, size: int) -> None:
        self.size = size
        self._stream = stream
        self._start = stream.position

    def read(self, size: int) -> bytes:
        """See Payload."""
        left = self._left
        data = self._stream.read(min(size, left))
        if left and size and not data:
            raise cut(self._stream.position)
        return data

    def rewind(self) -> bool:
        """See Payload."""
        return self._stream.back_to(self._start)

    def skip(self) -> None:
        """Skip the rest of the member and its padding."""
        self._stream.skip(self._left)
        self._stream.read(-self.size % BLOCK)  # the last member may lack its padding

    @property
    def _left(self) -> int:
        return self._start + self.size - self._stream.position


def read_members(stream: ByteStream) -> Iterator[tuple[Member, TarPayload]]:
    """Yield every file and link of the tar, in order. What is not read of a member is skipped.

    Raises Malformed, TooLarge, Unsupported, Truncated. After the last member, the rest of the stream is read.
    """
    count, names = 0, 0
    while (header := _next_member(stream)) is not None:
        count, names = count + 1, names + _checked_names(header)
        if count > MEMBERS_MAX:
            raise TooLarge(f"archive: has more than {MEMBERS_MAX} members")
        if names > NAMES_MAX:
            raise TooLarge(f"archive: its names take more than {NAMES_MAX} bytes")
        payload = TarPayload(stream, _payload_size(header))
        if header.type != _DIRECTORY:
            yield _member(header), payload
        payload.skip()
    if not count:
        raise Malformed("archive: is empty, expected a tar of an OCI layout or of `docker save`")
    stream.finish()


def _next_member(stream: ByteStream) -> Header | None:
    """Return the next header with all extended headers applied; None at the end."""
    extended = ExtendedHeaders()
    while (header := _next_header(stream)) is not None:
        if header.type not in EXTENDED_TYPES:
            if any(key.startswith(b"GNU.sparse") for key in extended.records):
                raise Unsupported(f"archive member {header.name[:200]!r}: is a sparse file; pack it without")
            extended.apply(header)
            return header
        size = _checked_size(header)
        extended.size += size
        if extended.size > EXTENDED_MAX:
            raise TooLarge(f"archive: extended headers of {extended.size} bytes, the limit is {EXTENDED_MAX}")
        payload = TarPayload(stream, size)
        if header.type != b"g":  # a global header is ignored
            extended.take(header.type, _whole(payload, stream))
        payload.skip()
    return None


def _next_header(stream: ByteStream) -> Header | None:
    start = stream.position
    block = stream.read(BLOCK)
    if not block:
        return None
    if len(block) < BLOCK:
        raise cut(stream.position)
    if block == ZEROS:
        if stream.read(BLOCK) not in (ZEROS, b""):
            raise Malformed("archive: a block follows one zero block, expected two at the end: the tar is damaged")
        return None
    try:
        return read_header(block)
    except Malformed as error:
        if start:
            raise Malformed(f"archive: offset {start}: {error.message}; get a complete archive") from None
        raise Malformed(
            f"archive: is not a tar, or is compressed in a format that no plugin reads ({error.message}); expected an "
            "OCI layout or what `docker save` writes"
        ) from None


def _member(header: Header) -> Member:
    name = clean(_text(header.name))
    if header.type in _REGULAR:
        return Member(name)
    if header.type == _SYMLINK:
        return Member(name, link_target(name, _text(header.link)))
    if header.type == _HARDLINK:
        return Member(name, clean(_text(header.link)))
    raise Malformed(f"archive member {name[:200]!r}: is of type {header.type!r}, expected files and links")


def _checked_names(header: Header) -> int:
    longest = max(len(header.name), len(header.link))
    if longest > PATH_MAX:
        raise TooLarge(f"archive member {header.name[:80]!r}: a path of {longest} bytes, the limit is {PATH_MAX}")
    return len(header.name) + len(header.link)


def _payload_size(header: Header) -> int:
    return _checked_size(header) if header.type in _REGULAR else 0


def _checked_size(header: Header) -> int:
    if not 0 <= header.size < SIZE_LIMIT:
        raise Malformed(f"archive member {header.name[:200]!r}: has size {header.size}")
    return header.size


def _whole(payload: TarPayload, stream: ByteStream) -> bytes:
    data = payload.read(PIECE) if payload.size else b""
    if len(data) < payload.size:
        raise cut(stream.position)
    return data


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise Malformed(f"archive member {name[:200]!r}: its name is not UTF-8") from None
