"""The xz compression as a plugin of imgfs: layers of type `application/vnd.oci.image.layer.v1.tar+xz`, and archives."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from typing import Annotated

import msgspec

from imgfs.errors import Malformed, TooLarge
from imgfs.layers.compression import PIECE_MAX, Compression, Piece
from imgfs.layers.plugin import COMPRESSION
from imgfs.plugins.contract import Context, Plugin

_STRIDE = 64 << 10
_PADDING = 4


class Options(msgspec.Struct, frozen=True):
    """What imgfs.toml may say in [plugins.compression.xz]."""

    memory_mib: Annotated[
        int, msgspec.Meta(description="What undoing the compression of one layer may take; `xz -9` wants 65.")
    ] = 128


class Xz:
    """Streams of the .xz file format, one after the other, with zeros between them in fours; a Decompressor."""

    def __init__(self, memory_mib: int) -> None:
        self._memory_mib = memory_mib
        self._stream: lzma.LZMADecompressor | None = None
        self._ended = 0  # streams so far
        self._padding = 0  # zeros since the last one

    def feed(self, piece: Piece) -> Iterator[Piece]:
        """Decompress `piece`."""
        rest = memoryview(piece)
        while rest or (self._stream and not self._stream.needs_input):
            if self._stream is None:
                rest = self._open(rest)
                continue
            part = rest[:_STRIDE] if self._stream.needs_input else b""
            rest = rest[len(part) :]
            made = self._decompress(self._stream, part)
            if self._stream.eof:
                rest = memoryview(self._stream.unused_data + bytes(rest))
                self._stream, self._ended = None, self._ended + 1
            if made:
                yield made

    def close(self) -> None:
        """Check that the last stream is whole and that there is one."""
        if self._stream is not None or not self._ended:
            raise Malformed(f"xz stream {self._ended + 1} ends too early: it is truncated")
        self._check_padding()

    def _open(self, rest: memoryview) -> memoryview:
        """Pass zeros over; begin a stream where something follows them."""
        after = rest.tobytes().lstrip(b"\0") if self._ended else bytes(rest)
        self._padding += len(rest) - len(after)
        if after:
            self._check_padding()
            self._padding = 0
            self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=self._memory_mib << 20)
        return memoryview(after)

    def _check_padding(self) -> None:
        if self._padding % _PADDING:
            raise Malformed(f"xz stream {self._ended} is followed by {self._padding} zeros: expected a multiple of 4")

    def _decompress(self, stream: lzma.LZMADecompressor, part: memoryview | bytes) -> bytes:
        try:
            return stream.decompress(part, PIECE_MAX)
        except lzma.LZMAError as error:
            if "limit" in str(error):
                raise TooLarge(f"xz stream that takes more than {self._memory_mib} MiB of memory") from error
            raise Malformed(f"xz stream {self._ended + 1}: {error}; the data are damaged or no xz") from error


def _compression(context: Context) -> Compression:
    options = context.options(Options)
    return Compression("xz", lambda: Xz(options.memory_mib), b"\xfd7zXZ\0")


PLUGIN = Plugin(
    COMPRESSION,
    "xz",
    _compression,
    options=Options,
    optional=True,
    exports={"media_type": "application/vnd.oci.image.layer.v1.tar+xz"},
)
