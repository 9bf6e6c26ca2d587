"""What is left of deleted containers, as long as it is kept: listed, read, forgotten. records.py makes it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from imgfs.disk.durable import TEMPORARY, make_directory, write_file
from imgfs.errors import NotFound, from_os
from imgfs.execution.records.records import is_id

_SUFFIX = ".json"
_WRITING_SECONDS = 60.0
"""How long writing one may take: supervisors write them too."""


class DeletedContainers:
    """`<state>/deleted/containers/`. Every call blocks, and may raise StorageFailed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ids(self) -> list[str]:
        """The ids of all, in no order."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os(error, "deleted containers") from None
        return [
            name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and is_id(name.removesuffix(_SUFFIX))
        ]

    def read(self, id: str) -> bytes:
        """What is known of one, as JSON. Raises NotFound."""
        try:
            return self._path(id).read_bytes()
        except OSError as error:
            raise _explained(error, id) from None

    def stat(self, id: str) -> os.stat_result:
        """How large that is, and when the container was deleted. Raises NotFound."""
        try:
            return os.stat(self._path(id))
        except OSError as error:
            raise _explained(error, id) from None

    def write(self, id: str, data: bytes) -> None:
        """Keep `data` of one, durably. Raises NoSpace."""
        try:
            make_directory(self._directory)
            write_file(self._path(id), data)
        except OSError as error:
            raise _explained(error, id) from None

    def remove(self, id: str) -> None:
        """Forget one. Raises NotFound."""
        try:
            os.unlink(self._path(id))
        except OSError as error:
            raise _explained(error, id) from None

    def older(self, moment: int) -> list[tuple[str, int]]:
        """What was deleted before `moment` (ns since the epoch): ids, sorted, and the bytes that each takes on disk."""
        found: list[tuple[str, int]] = []
        for id in sorted(self.ids()):
            with suppress(NotFound):
                status = self.stat(id)
                if status.st_mtime_ns < moment:
                    found.append((id, status.st_blocks * 512))
        return found

    def sweep(self) -> None:
        """Remove what is half written, but for what somebody may be writing still. Raises ReadOnly."""
        try:
            for entry in os.scandir(self._directory):
                if entry.name.startswith(TEMPORARY) and time.time() - entry.stat().st_mtime > _WRITING_SECONDS:
                    os.unlink(entry.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise from_os(error, "deleted containers") from None

    def _path(self, id: str) -> Path:
        return self._directory / f"{id}{_SUFFIX}"


def _explained(error: OSError, id: str) -> Exception:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"deleted container {id}: nothing is known of one")
    return from_os(error, f"deleted container {id}")
