"""One container: the JSON documents that describe it, and its directory with files and lock.

Whether a container has a supervisor is decided by its lock, never by a PID. records.py has the directory of all
containers.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from imgfs.disk.durable import write_file
from imgfs.errors import Busy, NotFound, StateError, StorageFailed, from_os, too_many_open
from imgfs.kernel.proc import START, STATE, stat_of

T = TypeVar("T")
_CLEANING_UP = b"leaving"
"""Content of the lock file of a supervisor that only cleans up."""
_LOCK_PATIENCE = 1.0
"""Seconds to wait for a reader that briefly shares the lock to check it."""
State = Literal["created", "running", "stopped"]
LOST = "the supervisor was killed; the exit code is unknown"
"""The reason of a container whose end was not observed."""


class InstalledRuntime(msgspec.Struct, frozen=True):
    """The OCI runtime of a container: its name and the path of its program."""

    name: str
    path: str


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """`container.json`: the configuration of a container. `snapshot` is its key under snapshots/active/."""

    id: str
    image: str
    """The image reference as the caller gave it."""
    digest: str
    platform: str
    chain: str
    snapshot: str
    created: str
    args: list[str]
    tty: bool
    detach: bool
    remove: bool
    """Whether the container is deleted as soon as it has ended (--rm)."""
    runtime: InstalledRuntime
    stop_signal: str
    labels: dict[str, str]
    mountpoint: str

    @property
    def runtime_id(self) -> str:
        """The runtime's ID of the container.

        It is unique, so the container's ID can be reused before the runtime has forgotten it.
        """
        return self.snapshot


class ContainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`status.json`: the state of a container, as its supervisor saw it.

    `exit_code` is that of a shell: 128 + n after signal n. It is None if it is unknown.
    """

    status: State
    pid: int | None = None
    start_time: int | None = None
    """Start time of process `pid` (proc_pid_stat(5), field 22). The PID alone may have been reused."""
    started: str | None = None
    finished: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    """Whether the kernel killed one of its processes because memory ran out."""
    reason: str = ""


class DeletedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """`deleted/containers/<id>.json`: the kept state of a deleted container, until garbage collection removes it."""

    container: Container
    status: ContainerStatus
    deleted: str

    def encode(self) -> bytes:
        """Encode as one flat document with the keys of both."""
        facts = msgspec.structs.asdict(self.container) | msgspec.structs.asdict(self.status)
        return encode(facts | {"deleted": self.deleted})


def encode(value: object) -> bytes:
    """Encode as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode_container(data: bytes, subject: str) -> Container:
    """Decode container.json. Raises StorageFailed, because imgfs wrote the file itself."""
    return _decode(data, Container, subject)


def decode_status(data: bytes, subject: str) -> ContainerStatus:
    """Decode status.json. Raises StorageFailed."""
    return _decode(data, ContainerStatus, subject)


def decode_deleted(data: bytes, subject: str) -> DeletedContainer:
    """Decode the result of DeletedContainer.encode. Raises StorageFailed."""
    facts = _decode(data, dict[str, msgspec.Raw], subject)
    deleted = _decode(bytes(facts.get("deleted", b'""')), str, subject)
    return DeletedContainer(
        container=_decode(data, Container, subject), status=_decode(data, ContainerStatus, subject), deleted=deleted
    )


def now() -> str:
    """Return the current time, RFC 3339 with nanoseconds."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _decode(data: bytes, shape: type[T], subject: str) -> T:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StorageFailed(f"{subject}: is damaged: {error}") from None


class ContainerRecord(msgspec.Struct, frozen=True):
    """The directory of one container."""

    path: Path

    @property
    def id(self) -> str:
        """The container's ID, once the record is published."""
        return self.path.name

    @property
    def bundle(self) -> Path:
        """The OCI bundle. It contains config.json and no rootfs."""
        return self.path / "bundle"

    @property
    def config(self) -> Path:
        """The OCI runtime spec."""
        return self.bundle / "config.json"

    @property
    def rootfs(self) -> Path:
        """Where the supervisor mounts the snapshot, so that the runtime finds it without a daemon."""
        return self.path / "rootfs"

    @property
    def log(self) -> Path:
        """The container's output."""
        return self.path / "log"

    @property
    def lock(self) -> Path:
        """The file that the supervisor keeps locked. It contains the supervisor's PID."""
        return self.path / "supervisor.lock"

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.path / "control"

    def container(self) -> Container:
        """Read container.json. Raises NotFound, StorageFailed."""
        return decode_container(self._read("container.json"), f"container {self.id}")

    def write_container(self, container: Container) -> None:
        """Write container.json durably. Raises OSError."""
        write_file(self.path / "container.json", encode(container))

    def written_status(self) -> ContainerStatus:
        """Read what the supervisor wrote last. Raises NotFound, StorageFailed."""
        return decode_status(self._read("status.json"), f"container {self.id}")

    def status(self, *, is_held: bool = False) -> ContainerStatus:
        """Return the true status: the written one, unless it says "running" and neither process nor supervisor lives.

        A process that lives on without its supervisor is running. `is_held`: the caller holds the lock and is not the
        supervisor. Raises NotFound, StorageFailed.
        """
        written = self.written_status()
        if written.status == "stopped" or (not is_held and self.is_supervised()):
            return written
        written = self.written_status()  # the supervisor may have written the end since the first read
        if written.status == "stopped" or is_alive(written):
            return written
        reason = LOST if written.status == "running" else "it was never started: the command that started it was killed"
        return ContainerStatus(status="stopped", started=written.started, reason=reason)

    def write_status(self, status: ContainerStatus) -> None:
        """Write status.json durably. Only the supervisor calls this. Raises OSError."""
        write_file(self.path / "status.json", encode(status))

    def is_supervised(self) -> bool:
        """Return whether a supervisor holds the lock. False for a caller that may not open the lock file.

        Raises StorageFailed if the lock cannot be checked; that must not count as False.
        """
        try:
            file = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        except OSError as error:
            raise from_os(error, str(self.lock)) from None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def take_lock(self) -> int:
        """Lock exclusively. The descriptor is passed to the supervisor. Raises Busy, NotFound."""
        return self._locked(is_shared=False)[0]

    def share_lock(self) -> tuple[int, bool]:
        """Lock an ended container so that it cannot be started. Raises the errors of `take_lock`.

        Return the descriptor, and whether its supervisor still cleans up (`allow_deletion`). That supervisor removes
        the runtime's state itself.
        """
        return self._locked(is_shared=True)

    def _locked(self, *, is_shared: bool) -> tuple[int, bool]:
        """Return the lock's descriptor, and whether it is shared with a supervisor that cleans up."""
        try:
            file = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise no_container(self.id) from None
        except OSError as error:
            raise from_os(error, str(self.lock)) from None
        deadline = time.monotonic() + _LOCK_PATIENCE
        try:
            while True:
                is_exclusive = _is_locked(file, fcntl.LOCK_EX)
                # A process that only checks the lock shares it for a moment, too.
                is_cleaning_up = (
                    is_shared and not is_exclusive and _is_cleaning_up(file) and _is_locked(file, fcntl.LOCK_SH)
                )
                if not self._is_lock(file):
                    raise no_container(self.id)  # deleted meanwhile; the ID may belong to another container
                if is_exclusive or is_cleaning_up:
                    return file, is_cleaning_up
                if time.monotonic() > deadline:
                    raise Busy(f"container {self.id}: {self._why_held()}")
                time.sleep(_LOCK_PATIENCE / 100)
        except BaseException:
            os.close(file)
            raise

    def _why_held(self) -> str:
        with suppress(NotFound, StateError):
            if self.written_status().status == "stopped":
                return "has ended, and is being deleted or started again; see `imgfs ps -a`"
        return "is running"

    def _is_lock(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.lock), os.fstat(file))
        except FileNotFoundError:
            return False

    def _read(self, name: str) -> bytes:
        try:
            with open(f"{self.path}/{name}", "rb", buffering=0) as file:  # twice as fast as Path.read_bytes
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise no_container(self.id) from None
        except OSError as error:
            raise from_os(error, str(self.path / name)) from None


def allow_deletion(lock: int) -> None:
    """Let an ended container be deleted, but not be started. For the supervisor, which owns `lock`."""
    try:
        os.pwrite(lock, _CLEANING_UP, 0)
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another process starts or deletes it at this moment
    except OSError:  # no space for the mark; the deleter cleans up
        fcntl.flock(lock, fcntl.LOCK_UN)


def _is_cleaning_up(lock: int) -> bool:
    return os.pread(lock, len(_CLEANING_UP), 0) == _CLEANING_UP


def is_alive(status: ContainerStatus) -> bool:
    """Return whether the process of a status lives. A new process that reuses its PID does not count."""
    return status.pid is not None and start_time(status.pid) == status.start_time is not None


def start_time(pid: int) -> int | None:
    """Return the start time of a process in ticks since boot (proc_pid_stat(5)); None if it is gone or a zombie.

    Raises TooManyOpen.
    """
    try:
        fields = stat_of(pid)
    except OSError as error:
        if too_many_open(error.errno):
            raise from_os(error, f"process {pid}") from None
        return None
    return None if fields[STATE] in (b"Z", b"X") else int(fields[START])


def _is_locked(file: int, mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def no_container(id: str) -> NotFound:
    return NotFound(f"container {id}: does not exist; `imgfs ps -a` lists all")
