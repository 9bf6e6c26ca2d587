"""Writes a tar that is the same for the same content: time 0, owner 0, fixed modes, members in the order given."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator

from imgfs.errors import VerificationFailed
from imgfs.layers.header import BLOCK

_RECORD = tarfile.RECORDSIZE


class TarWriter:
    """Turns members into the bytes of a tar, piece by piece, in memory that does not grow with them."""

    def __init__(self) -> None:
        self._size = 0

    def directory(self, name: str) -> Iterator[bytes]:
        """A directory."""
        info = tarfile.TarInfo(f"{name}/")
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        yield self._counted(_header(info))

    def file(self, name: str, size: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """A file of `size` bytes. Raises VerificationFailed where `pieces` are more or fewer."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        yield self._counted(_header(info))
        left = size
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            yield self._counted(piece)
        if left:
            raise VerificationFailed(f"archive member {name}: {size - left} bytes came, expected {size}; export again")
        yield self._counted(bytes(-size % BLOCK))

    def end(self) -> Iterator[bytes]:
        """The end of the archive, filled up to a whole record."""
        yield self._counted(bytes(2 * BLOCK))
        yield self._counted(bytes(-self._size % _RECORD))

    def _counted(self, piece: bytes) -> bytes:
        self._size += len(piece)
        return piece


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
