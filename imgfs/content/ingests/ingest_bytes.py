"""The bytes of an unfinished write: the file `data`, as far as it counts."""

from __future__ import annotations

import os
from pathlib import Path

from imgfs.aio.threads import run_disk
from imgfs.disk.calls import Disk
from imgfs.errors import ImgfsError


class IngestBytes:
    """A file of which the first `offset` bytes count; so many it has at least.

    Whatever takes bytes away changes `generation`: a sync or hash that began before counts for nothing. Methods raise
    OSError.
    """

    def __init__(self, disk: Disk, path: Path, offset: int) -> None:
        self.path = path
        self.offset: int = offset
        self.generation = 0
        self.is_ragged = True
        """Whether the file may hold bytes beyond `offset`: known when it was opened."""
        self.gone: ImgfsError | None = None
        """Why there is nothing to write to any more."""
        self._disk = disk
        self._cuts = 0
        self._file: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is open."""
        return self._file is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Another one whenever the file changed."""
        return self.generation, self._cuts, self.offset

    async def open(self) -> int:
        """The descriptor, of a file that is cut to `offset` if bytes beyond it are left."""
        if self._file is None:
            self._file = await run_disk(self._disk.open, self.path)
            self.is_ragged = os.fstat(self._file).st_size != self.offset
        if self.is_ragged:
            await run_disk(self._disk.truncate, self._file, self.offset)
            self.is_ragged = False
            self._cuts += 1
        return self._file

    async def open_another(self) -> int:
        """A descriptor of the caller's own, which hears of a failed write as the first one does, if that is open."""
        return os.dup(self._file) if self._file is not None else await run_disk(self._disk.open, self.path)

    def close(self) -> None:
        """Let the descriptor go; the caller sees to it that nobody uses it."""
        if (file := self.give_away()) is not None:
            os.close(file)

    def give_away(self) -> int | None:
        """The descriptor, which is the caller's from now on; None if it is not open."""
        file, self._file = self._file, None
        return file

    def write(self, file: int, view: memoryview, offset: int) -> tuple[int, OSError | None]:
        """How much was written at `offset`, and what went wrong before all was; for a thread."""
        written = 0
        try:
            while written < len(view):
                written += self._disk.write(file, view[written:], offset + written)
        except OSError as error:
            return written, error
        return written, None

    def cut_back(self, offset: int) -> None:
        """The bytes from `offset` on count no more; the next `open` takes them out of the file."""
        self.generation += 1
        self.offset, self.is_ragged = offset, True

    def check_alive(self) -> None:
        """Raise why they are gone, if they are."""
        if self.gone is not None:
            raise self.gone

    def end(self, reason: ImgfsError) -> None:
        """None of them counts for anybody any more."""
        self.gone = reason
        self.generation += 1
        self.close()
