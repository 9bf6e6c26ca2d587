"""Where the records of containers lie in a state directory, how they reach the disk, and who is alive.

`containers/<id>/` is made under a temporary name, synced and renamed: a container is wholly there or not. Whether one
has a supervisor is told by the lock that it holds, never by a pid.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from imgfs.disk.calls import HOST
from imgfs.disk.durable import TEMPORARY, fsync_path, make_directory, write_file
from imgfs.errors import AlreadyExists, Busy, Invalid, NotFound, StateError, StorageFailed, from_os, too_many_open
from imgfs.execution.records.record import (
    LOST,
    Container,
    ContainerStatus,
    DeletedContainer,
    decode_container,
    decode_deleted,
    decode_status,
    encode,
    now,
)
from imgfs.kernel.proc import START, STATE, stat_of

NEW, GONE = ".new-", ".gone-"
"""How the names of records begin that are being made, and of those that are being removed."""
ID_MAX = 128
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_OTHERS = str.maketrans("", "", "_.-")
_LEAVING = b"leaving"
"""What is in the lock of a supervisor that has only to take away what is its own."""
_LOCK_PATIENCE = 1.0
"""Seconds in which whoever only looks whether a lock is held lets go of it."""


class ContainerRecord(msgspec.Struct, frozen=True):
    """One container's directory."""

    path: Path

    @property
    def id(self) -> str:
        """The container's id, once the directory has its name."""
        return self.path.name

    @property
    def bundle(self) -> Path:
        """The OCI bundle: config.json, and no rootfs."""
        return self.path / "bundle"

    @property
    def config(self) -> Path:
        """The OCI runtime spec."""
        return self.bundle / "config.json"

    @property
    def rootfs(self) -> Path:
        """Where the container's supervisor mounts its snapshot, so that no daemon is needed to find it."""
        return self.path / "rootfs"

    @property
    def log(self) -> Path:
        """What the container wrote."""
        return self.path / "log"

    @property
    def lock(self) -> Path:
        """What the supervisor holds, and in it its pid."""
        return self.path / "supervisor.lock"

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.path / "control"

    def container(self) -> Container:
        """How it was made. Raises NotFound, StorageFailed."""
        return decode_container(self._read("container.json"), f"container {self.id}")

    def put_container(self, container: Container) -> None:
        """Write container.json, durably. Raises OSError."""
        write_file(self.path / "container.json", encode(container))

    def written_status(self) -> ContainerStatus:
        """What the supervisor wrote last. Raises NotFound, StorageFailed."""
        return decode_status(self._read("status.json"), f"container {self.id}")

    def status(self, *, is_held: bool = False) -> ContainerStatus:
        """What is true now: what was written, unless it says that it lives and nobody is there. Raises NotFound.

        A process that lives on without its supervisor is running. `is_held`: the lock is the caller's, who is none.
        """
        written = self.written_status()
        if written.status == "stopped" or (not is_held and self.is_supervised()):
            return written
        written = self.written_status()  # the supervisor may have ended, as it should, since the first look
        if written.status == "stopped" or is_alive(written):
            return written
        reason = LOST if written.status == "running" else "it was never started: what started it was killed"
        return ContainerStatus(status="stopped", started=written.started, reason=reason)

    def put_status(self, status: ContainerStatus) -> None:
        """Write status.json, durably. Raises OSError. The supervisor alone does this."""
        write_file(self.path / "status.json", encode(status))

    def is_supervised(self) -> bool:
        """Whether somebody holds the lock. Raises StorageFailed where that cannot be told: it is no answer.

        To who may not look nobody does.
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
        """Hold the lock alone; the descriptor goes on to the supervisor. Raises Busy, NotFound."""
        return self._locked(is_shared=False)[0]

    def share_lock(self) -> tuple[int, bool]:
        """Hold the lock of one that has ended, so that nobody starts it; a descriptor. Raises as `take_lock`.

        Tells too whether its supervisor is there still (`let_delete`): it takes away what its runtime keeps.
        """
        return self._locked(is_shared=True)

    def _locked(self, *, is_shared: bool) -> tuple[int, bool]:
        """The lock's descriptor, and whether it is shared with a supervisor that leaves, where it may be."""
        try:
            file = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise _absent(self.id) from None
        except OSError as error:
            raise from_os(error, str(self.lock)) from None
        deadline = time.monotonic() + _LOCK_PATIENCE
        try:
            while True:
                is_alone = _is_locked(file, fcntl.LOCK_EX)
                # Who only looks shares it for a moment, too.
                is_leaving = is_shared and not is_alone and _is_left(file) and _is_locked(file, fcntl.LOCK_SH)
                if not self._is_lock(file):
                    raise _absent(self.id)  # it was deleted meanwhile, and what is of that id now is another one
                if is_alone or is_leaving:
                    return file, is_leaving
                if time.monotonic() > deadline:
                    raise Busy(f"container {self.id}: {self._why_held()}")
                time.sleep(_LOCK_PATIENCE / 100)
        except BaseException:
            os.close(file)
            raise

    def _why_held(self) -> str:
        with suppress(NotFound, StateError):
            if self.written_status().status == "stopped":
                return "has ended, and is just being deleted or started again; `imgfs ps -a` tells"
        return "is running"

    def _is_lock(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.lock), os.fstat(file))
        except FileNotFoundError:
            return False

    def _read(self, name: str) -> bytes:
        try:
            with open(f"{self.path}/{name}", "rb", buffering=0) as file:  # half of what a Path's read_bytes takes
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise _absent(self.id) from None
        except OSError as error:
            raise from_os(error, str(self.path / name)) from None


class ContainerRecords:
    """The containers of one state directory."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "containers"
        self.deleted = state / "deleted" / "containers"
        self.runtime_root = self.directory / ".runtime"
        """Where runtimes keep their own state."""

    def ids(self) -> list[str]:
        """The ids of all containers, in no order. Raises StorageFailed."""
        try:
            return [name for name in os.listdir(self.directory) if is_id(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os(error, "containers") from None

    def find(self, id: str) -> ContainerRecord:
        """The record of that id, whether or not there is one; costs the same among one and 100,000. Raises Invalid."""
        check_id(id)
        return ContainerRecord(self.directory / id)

    def get(self, id: str) -> ContainerRecord:
        """As `find`. Raises NotFound where there is none."""
        record = self.find(id)
        if not record.path.is_dir():
            raise _absent(id)
        return record

    def make(self) -> ContainerRecord:
        """A new record under a temporary name. Raises OSError."""
        for directory in (self.directory, self.deleted, self.runtime_root):
            make_directory(directory)
        record = ContainerRecord(self.directory / f"{NEW}{os.urandom(16).hex()}")
        os.mkdir(record.path, 0o700)
        return record

    def publish(self, record: ContainerRecord, id: str) -> ContainerRecord:
        """Give a whole new record its name, durably. Raises AlreadyExists, OSError."""
        named = self.find(id)
        try:
            HOST.rename(record.path, named.path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyExists(
                    f"container {id}: exists already; choose another --name, or `imgfs delete {id}`"
                ) from None
            raise
        fsync_path(self.directory)
        return named

    def withdraw(self, record: ContainerRecord) -> ContainerRecord:
        """Take the name of a record away again: it is one that is being made. Raises OSError."""
        if record.path.name.startswith(NEW):
            return record
        withdrawn = ContainerRecord(self.directory / f"{NEW}{os.urandom(16).hex()}")
        HOST.rename(record.path, withdrawn.path)
        fsync_path(self.directory)
        return withdrawn

    def forget(self, record: ContainerRecord, *, is_left: bool = False) -> None:
        """Take a record away at once, and then from disk. Raises OSError; what is left is collected later.

        `is_left`: only out of sight; the rest is for whoever knows it (`gone`).
        """
        gone = self.directory / f"{GONE}{os.urandom(16).hex()}"
        try:
            HOST.rename(record.path, gone)
        except FileNotFoundError:
            return
        fsync_path(self.directory)
        if not is_left:
            remove_gone(ContainerRecord(gone))

    def keep_deleted(self, record: ContainerRecord, *, is_held: bool = False) -> DeletedContainer:
        """Write down what became of a container before its record goes, durably. Raises NotFound, OSError.

        `is_held` as of Record.status.
        """
        made = DeletedContainer(container=record.container(), status=record.status(is_held=is_held), deleted=now())
        make_directory(self.deleted)
        write_file(self.deleted / f"{record.id}.json", made.encode())
        return made

    def find_deleted(self, id: str) -> DeletedContainer | None:
        """What stays of the container of that id that was deleted last. Raises Invalid, StorageFailed."""
        check_id(id)
        try:
            data = (self.deleted / f"{id}.json").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os(error, f"deleted container {id}") from None
        return decode_deleted(data, f"container {id}")

    def user_of(self, key: str) -> ContainerRecord | None:
        """The container that the active snapshot of that key belongs to, found without a search. Raises TooManyOpen."""
        id = key.rpartition("-")[0]
        if not is_id(id):
            return None
        record = ContainerRecord(self.directory / id)
        try:
            return record if record.container().snapshot == key else None
        except (NotFound, StorageFailed):
            return None

    def rootfs_of(self, key: str) -> Path | None:
        """Where the active snapshot of that key is mounted for its container, if it is. Blocks."""
        record = self.user_of(key)
        return record.rootfs if record is not None and os.path.ismount(record.rootfs) else None

    def is_used(self, key: str) -> bool:
        """Whether the active snapshot of that key is that of a container which has not ended. Raises TooManyOpen."""
        record = self.user_of(key)
        try:
            return record is not None and record.status().status != "stopped"
        except (NotFound, StorageFailed):
            return False

    def unfinished(self) -> list[ContainerRecord]:
        """What is being made, or was when somebody was killed over it. Raises StorageFailed."""
        return self._called(NEW)

    def gone(self) -> list[ContainerRecord]:
        """What is out of sight already and still being removed, or was when somebody was killed over it.

        Raises StorageFailed.
        """
        return self._called(GONE)

    def _called(self, beginning: str) -> list[ContainerRecord]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os(error, "containers") from None
        return [ContainerRecord(self.directory / name) for name in names if name.startswith(beginning)]


def let_delete(lock: int) -> None:
    """Of a container that has ended and has to go: keep it from being started again, and no more from being deleted.

    For the supervisor, whose own `lock` it is.
    """
    try:
        os.pwrite(lock, _LEAVING, 0)
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # somebody starts or deletes it at this very moment
    except OSError:  # no room for a word: then who deletes it does all
        fcntl.flock(lock, fcntl.LOCK_UN)


def _is_left(lock: int) -> bool:
    return os.pread(lock, len(_LEAVING), 0) == _LEAVING


def remove_gone(record: ContainerRecord) -> None:
    """Remove a record that is out of sight from disk. What cannot be removed is collected later."""
    shutil.rmtree(record.path, ignore_errors=True)  # not through Disk: the rename to GONE was the removal


def new_key(id: str) -> str:
    """A key for the snapshot of a container of that id: no earlier one of the same id had it."""
    return f"{id}-{os.urandom(4).hex()}"


def is_id(id: str) -> bool:
    """Whether a container may be called so: what runtimes, file names and host names all take."""
    return len(id) <= ID_MAX and id[:1] in _LETTERS and _LETTERS.issuperset(id.translate(_OTHERS))


def check_id(id: str) -> None:
    """Raise Invalid unless a container may be called so."""
    if not is_id(id):
        raise Invalid(
            f"container {id[:ID_MAX]!r}: expected up to {ID_MAX} letters, digits, `_`, `.` and `-`, "
            "a letter or a digit first"
        )


def is_alive(status: ContainerStatus) -> bool:
    """Whether the process that a status tells of lives, and is not another one with the same pid."""
    return status.pid is not None and start_time(status.pid) == status.start_time is not None


def start_time(pid: int) -> int | None:
    """When a process was started, in ticks since the boot (proc_pid_stat(5)); None if it is gone or a zombie.

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


def _absent(id: str) -> NotFound:
    return NotFound(f"container {id}: does not exist; `imgfs ps -a` lists all")


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
            HOST.unlink(self._path(id))
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
                    HOST.unlink(Path(entry.path))
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
