"""What a supervisor is to do: a message that it gets first, with the open files that belong to it."""

from __future__ import annotations

import msgspec

from imgfs.execution.records.record import Runtime

NONE = -1
"""In place of a descriptor: none."""
_FILES = ("lock", "rootfs", "stdin", "stdout", "stderr", "terminal")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One container to run. Descriptors are numbers of the process that has the job."""

    state: str
    id: str
    record: str
    """What the record's directory is called: the id, or a temporary name: then a start that fails leaves nothing."""
    lock: int
    """The record's lock, held."""
    rootfs: int
    """The directory of its files in the tree, by its path alone (O_PATH), so that nobody has to walk there again."""
    stdin: int = NONE
    stdout: int = NONE
    stderr: int = NONE
    """Where what the container writes goes besides the log."""
    terminal: int = NONE
    """A stream socket to whoever has the terminal."""
    size: tuple[int, int] = (0, 0)
    """Rows and columns of that terminal."""
    runtimes: list[Runtime]
    """To be tried in this order."""
    deadline: float
    log_bytes: int
    is_logged: bool

    @property
    def is_new(self) -> bool:
        """Whether it is the container's first start."""
        return self.record != self.id

    def encode(self) -> tuple[bytes, list[int]]:
        """The message, and the files that go with it, in its order."""
        return msgspec.json.encode(self), [one for one in self._descriptors if one != NONE]

    @property
    def _descriptors(self) -> list[int]:
        return [getattr(self, name) for name in _FILES]


def decode_job(data: bytes, files: list[int]) -> Job:
    """The job of a message: its descriptors are those of `files`."""
    job, left = msgspec.json.decode(data, type=Job), iter(files)
    here = {name: next(left) for name in _FILES if getattr(job, name) != NONE}
    return msgspec.structs.replace(job, **here)
