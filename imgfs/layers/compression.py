"""The table of compressions, and a decompressor for each built-in one.

A decompressor is fed pieces and yields pieces of bounded size, so a decompression bomb costs time but no memory.
oci/descriptor.py derives the name of the compression from a media type. unpack.py verifies digests and limits the
total.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from isal import isal_zlib

from imgfs.errors import Invalid, Malformed, TooLarge, Unsupported
from imgfs.oci.descriptor import OCI_LAYER, layer_compression

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Piece = bytes | bytearray | memoryview

PIECE_MAX = 1 << 20
"""Limit of the bytes of one yielded piece."""

_GZIP_WBITS = 31
_GZIP_MAGIC, _GZIP_FIXED, _GZIP_HEADER_MAX = b"\x1f\x8b\x08", 10, 128 << 10
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 2, 4, 8, 16
_ISAL_ERROR = cast(type[Exception], isal_zlib.error)
_WINDOW_LOG_MAX = 27
_STRIDE_MIN, _STRIDE_MAX = 4 << 10, 256 << 10


class Decompressor(Protocol):
    """Decompresses one stream. It must not be used again after an error."""

    def feed(self, piece: Piece) -> Iterator[Piece]:
        """Decompress the next `piece`. Yields pieces of at most PIECE_MAX bytes; the caller must exhaust the iterator.

        Raises Malformed if the stream violates its format, TooLarge if it needs more memory than the limit.
        """
        ...

    def close(self) -> None:
        """End the stream. Raises Malformed if it is truncated, or if it is compressed and empty."""
        ...


class Stored:
    """No compression."""

    def feed(self, piece: Piece) -> Iterator[Piece]:
        """Yield `piece` itself, split if it is longer than PIECE_MAX."""
        if len(piece) <= PIECE_MAX:
            yield piece
            return
        view = memoryview(piece)
        for at in range(0, len(view), PIECE_MAX):
            yield view[at : at + PIECE_MAX]

    def close(self) -> None:
        """Do nothing: an uncompressed stream has no end mark."""


class _Library(Protocol):
    """The decompressor of one member or frame in zlib, isal and zstd."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Inflater(_Library, Protocol):
    """The methods of isal that have no type annotations."""

    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: Piece, max_length: int, /) -> bytes: ...


class _Members:
    """Decompresses a sequence of members of one format. The last member must be complete.

    The library copies the input that it did not consume. Large inputs are fast inside a long member, but quadratic over
    many short members. So the input of one call grows while a member lasts.
    """

    name: str

    def __init__(self) -> None:
        self._ended = 0  # complete members
        self._inside = False
        self._stride = _STRIDE_MIN

    def close(self) -> None:
        """Raise Malformed unless there is a member and the last one is complete."""
        if self._inside or not self._ended:
            raise Malformed(f"{self.name} stream ends inside member {self._ended + 1}: it is truncated")

    def _settle(self, member: _Library) -> int:
        """Record whether `member` ended in the last call. Returns the number of input bytes after its end."""
        self._inside = not member.eof
        if self._inside:
            self._stride = min(2 * self._stride, _STRIDE_MAX)
            return 0
        self._stride = _STRIDE_MIN
        self._ended += 1
        return len(member.unused_data)

    def _broken(self, error: Exception | str) -> Malformed:
        return Malformed(f"{self.name} member {self._ended + 1}: {error}; the data are damaged or no {self.name}")


class Gzip(_Members):
    """Decompresses members of RFC 1952. Only zeros may follow the last one."""

    name = "gzip"

    def __init__(self) -> None:
        super().__init__()
        self._member = _new_member()
        self._head = bytearray()  # the start of the member, until its header is complete
        self._started = False  # whether the library has received the header
        self._padded = False

    def feed(self, piece: Piece) -> Iterator[Piece]:
        """Inflate `piece`."""
        view = memoryview(piece)
        at, full = 0, False
        while at < len(view) or full:
            if not self._inside:
                if self._is_padding(view[at:]):
                    return
                self._open()
            part: Piece = view[at : at + self._stride]
            at += len(part)
            if not self._started and not (part := self._start(part)):
                continue
            out = self._inflate(part)
            full = len(out) == PIECE_MAX and not self._member.eof
            at -= len(self._member.unconsumed_tail) + self._settle(self._member)
            if out:
                yield out

    def _open(self) -> None:
        self._member = _new_member()
        self._inside, self._started = True, False

    def _start(self, part: Piece) -> bytes:
        """Buffer `part` until the header is complete. Returns nothing before that, then the buffer.

        isal misreads a header with a checksum or with several optional fields if it arrives in more than one call.
        """
        self._head += part
        if not _has_header(self._head):
            if len(self._head) > _GZIP_HEADER_MAX:
                raise self._broken(f"a header of more than {_GZIP_HEADER_MAX} bytes")
            return b""
        held = bytes(self._head)
        self._head.clear()
        self._started = True
        return held

    def _inflate(self, part: Piece) -> bytes:
        try:
            return self._member.decompress(part, PIECE_MAX)
        except _ISAL_ERROR as error:
            raise self._broken(error) from error

    def _is_padding(self, rest: memoryview) -> bool:
        """Return whether the padding of zeros has begun. Raises Malformed for other bytes after it."""
        self._padded = self._padded or (self._ended > 0 and rest[0] == 0)
        if self._padded and rest.tobytes().strip(b"\0"):
            raise Malformed("gzip stream goes on after its zero padding: expected nothing but zeros")
        return self._padded


def _has_header(data: bytearray) -> bool:
    """Return whether `data` starts with a complete member header (RFC 1952, 2.3).

    Also True for bytes that are no header: the library refuses them.
    """
    if not data.startswith(_GZIP_MAGIC[: len(data)]):
        return True
    if len(data) < _GZIP_FIXED:
        return False
    flags, at = data[3], _GZIP_FIXED
    if flags & _FEXTRA:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for text in (_FNAME, _FCOMMENT):
        if flags & text:
            end = data.find(b"\0", at)
            if end < 0:
                return False
            at = end + 1
    return at + (2 if flags & _FHCRC else 0) <= len(data)


def _new_member() -> _Inflater:
    return isal_zlib.decompressobj(wbits=_GZIP_WBITS)  # pyright: ignore[reportUnknownMemberType]


class Zstd(_Members):
    """Decompresses frames and skippable frames of RFC 8878. A window may have at most 128 MiB."""

    name = "zstd"

    def __init__(self) -> None:
        super().__init__()
        self._frame = _new_frame()

    def feed(self, piece: Piece) -> Iterator[Piece]:
        """Decompress `piece`."""
        view = memoryview(piece)
        at = 0
        while at < len(view) or (self._inside and not self._frame.needs_input):
            if not self._inside:
                self._frame = _new_frame()
            part = view[at : at + self._stride] if self._frame.needs_input else b""
            out = self._decompress(part)
            at += len(part) - self._settle(self._frame)
            if out:
                yield out

    def _decompress(self, part: memoryview | bytes) -> bytes:
        try:
            return self._frame.decompress(part, PIECE_MAX)
        except zstd.ZstdError as error:
            if "too much memory" in str(error):
                raise TooLarge(f"zstd frame with a window of more than {1 << _WINDOW_LOG_MAX} bytes") from error
            raise self._broken(error) from error


def _new_frame() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})


@dataclass(frozen=True, slots=True)
class Compression:
    """One compression format of layers and archives, as a plugin defines it.

    `word` is the name of the format in a layer's media type (`gzip` in `...tar+gzip`), or `none`. `open` returns the
    decompressor of a new stream. Every stream of the format starts with `magic`. A format without magic bytes is never
    detected in an archive.
    """

    word: str
    open: Callable[[], Decompressor]
    magic: bytes = b""

    @property
    def layer_type(self) -> str:
        """The OCI media type of a layer in this format."""
        return OCI_LAYER if self.word == NONE.word else f"{OCI_LAYER}+{self.word}"


NONE = Compression("none", Stored)
GZIP = Compression("gzip", Gzip, b"\x1f\x8b")
ZSTD = Compression("zstd", Zstd, b"\x28\xb5\x2f\xfd")
BUILT_IN = (NONE, GZIP, ZSTD)
"""The formats of the image specification. The plugins of layers/ provide these same objects."""


class Compressions:
    """The table of all compression formats in use: lookup by media type and by magic bytes."""

    def __init__(self, found: Iterable[Compression]) -> None:
        """Build the table. Raises Invalid if two formats have the same word."""
        self._by_word: dict[str, Compression] = {}
        for one in found:
            if self._by_word.setdefault(one.word, one) is not one:
                raise Invalid(
                    f"compression {one.word!r}: two plugins give it; name one in disabled_plugins of imgfs.toml"
                )

        # The longest match wins, so that one format's magic may be the start of another's.
        with_magic = [one for one in self._by_word.values() if one.magic]
        self._by_magic = sorted(with_magic, key=lambda one: -len(one.magic))

    @property
    def magic_size(self) -> int:
        """The number of bytes that `detect` needs from the start of a stream."""
        return max((len(one.magic) for one in self._by_magic), default=0)

    def detect(self, head: bytes) -> Compression:
        """Return the format of a stream by its first `magic_size` bytes; NONE if no format matches."""
        return next((one for one in self._by_magic if head.startswith(one.magic)), NONE)

    def of(self, media_type: str) -> Compression:
        """Return the format of a layer of this media type.

        Raises Unsupported if no plugin provides the format, or if the media type is not that of a tar layer.
        """
        word = layer_compression(media_type)
        if word not in self._by_word:
            raise Unsupported(
                f"layer of media type {media_type[:120]!r}: compressions here are {', '.join(sorted(self._by_word))}; "
                "a plugin can add others"
            )
        return self._by_word[word]
