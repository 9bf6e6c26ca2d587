"""The life of a container, from its record to its end: made by a runtime, waited for, told, taken away.

Order: the status is on disk before anybody is told of it; who started it is told when the runtime has forgotten it, or
where it is to go, when it is gone for everybody; the lock is let go last. What cannot be started leaves nothing, or
what was there before.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from imgfs.errors import Cancelled, ImgfsError, from_os
from imgfs.execution.cgroups import oom_kills
from imgfs.execution.control import Connection, Json, Refused, opened
from imgfs.execution.launch import NONE, Job, decode_job
from imgfs.execution.records.record import Container, ContainerStatus, InstalledRuntime, now
from imgfs.execution.records.records import GONE, ContainerRecord, ContainerRecords, let_delete, remove_gone, start_time
from imgfs.execution.removal import (
    clear_leavings,
    collect,
    delete_by_tree,
    discard_runtime,
    path_of,
    unmake,
    unmount_rootfs,
)
from imgfs.execution.runtimes.choice import remember_refusal
from imgfs.execution.runtimes.runtime import NOT_EXECUTABLE, OciRuntime, RuntimeFailed, is_before_program, shell_code_of
from imgfs.execution.signals import signal_number
from imgfs.execution.supervisor.server import ControlServer, begun, is_gone, is_ready, number_of, unknown, wait_left
from imgfs.execution.supervisor.streams import Log, Streams, streams_of
from imgfs.kernel.bind import bind
from imgfs.kernel.process import adopt_orphans

_RETRY = 1.0
"""Seconds after which a status that the disk did not take is written again."""
_BUSY_SECONDS = 60.0
"""How long a container that is to go may be busy after its end."""
_SIGNALS = 64
_FILES_MAX = 8


def supervise(client: Connection) -> None:
    """Run the container of the job that `client` sends to its end; without a job there is nothing to do.

    The first answer says whether its program runs.
    """
    data, files = client.receive_files(_FILES_MAX)
    if not data:
        return
    job = decode_job(data, files)
    adopt_orphans()
    os.umask(0o077)
    os.ftruncate(job.lock, 0)  # not through Disk: after a crash nobody holds the lock
    os.pwrite(job.lock, f"pid {os.getpid()}\n".encode(), 0)
    Path("/proc/self/comm").write_text(f"imgfs:{job.id}")
    life = _Life(job, client)
    try:
        life.begin()
    except ImgfsError as error:
        life.undo(error)
        return
    except OSError as error:
        life.undo(from_os(error, str(error.filename or life.record.path)))
        return
    life.live()
    life.end()
    life.leave()


class _Life:
    def __init__(self, job: Job, client: Connection) -> None:
        self._job = job
        self._client = client
        self._records = ContainerRecords(Path(job.state))
        self.record = ContainerRecord(self._records.directory / job.record)
        self._container = self.record.container()
        self._before = self.record.written_status()
        self._status = ContainerStatus(status="created")
        self._runtime: OciRuntime | None = None
        self._log: Log | None = None
        self._streams: Streams | None = None
        self._server: ControlServer | None = None
        self._process = -1
        self._rootfs = job.rootfs
        self._is_forgotten = False
        self._is_told = False
        self._join_collecting: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Have the container made and its program begun. Raises ImgfsError and OSError; then call `undo`."""
        job = self._job
        if job.is_new:
            self.record = self._records.publish(self.record, job.id)
        record = self.record
        self._log = Log(record.log, job.log_bytes) if job.is_logged else None
        self._streams = streams_of(job, record, self._log)
        self._server = ControlServer(record.control, self._client, self._answer)
        pid_file = record.path / "pid"
        self._mount()
        if is_gone(self._client):
            raise Cancelled(f"container {record.id}: whoever started it wants it no more")
        self._runtime, notes = self._run(job.runtimes, pid_file, self._streams)
        pid, started = int(pid_file.read_text()), now()
        self._process = os.pidfd_open(pid)
        self._streams.begin()
        self._status = ContainerStatus(status="running", pid=pid, start_time=start_time(pid), started=started)
        if not is_ready(self._process):  # what has ended already is never said to run
            record.put_status(self._status)
        with suppress(OSError):
            self._client.send({"ok": True, "pid": pid, "notes": notes})

    def undo(self, error: ImgfsError) -> None:
        """Take away what was begun, and tell why; a container that is not new is as it was."""
        self._let_go()
        notes: list[str] = []
        if self.record.path.name == self._job.id:  # or what is of that id is another container's
            with suppress(ImgfsError):
                discard_runtime(self._records, self.record, self._container)
        if self._streams is not None:
            self._streams.abandon()
        if self._server is not None:
            self._server.close(_refusal(error))
        try:
            if self._job.is_new:
                unmake(self._records, self.record, self._container)
            else:
                self.record.put_status(self._before)
        except (ImgfsError, OSError) as left:
            notes.append(str(left))
        with suppress(OSError):
            self._client.send(_refusal(error) | {"notes": notes})

    def live(self) -> None:
        """Wait until the program has ended."""
        assert self._server
        self._join_collecting = begun(lambda: collect(self._records, self._container.mountpoint))
        self._server.serve(self._process)

    def end(self) -> None:
        """Keep how it ended, tell whoever waits, and take away what has to go."""
        assert self._streams
        self._status = outcome(self._process, self._status, self._container, self._streams)
        if not self._container.remove:
            join_forgetting = begun(self._forget_runtime)
            told = self._keep()
            join_forgetting()
            self._tell(told)
            return
        told = self._keep()
        if why := self._delete():
            told["notes"] = [why]
        self._tell(told)
        wait_left(self._client)  # what is left is out of sight, and nobody waits for it
        if not self._is_forgotten:
            self._forget_runtime()
        if self.record.path.name.startswith(GONE):
            remove_gone(self.record)

    def leave(self) -> None:
        """Be no more; what others left is collected before."""
        os.close(self._job.lock)
        self._join_collecting()

    def _keep(self) -> Json:
        """Write down how it ended, tell all but who started it, whose answer this returns, and end its output."""
        assert self._server
        assert self._streams
        self._put_status()
        told: Json = {"ok": True, "status": msgspec.to_builtins(self._status)}
        self._server.close(told)
        self._server = None
        self._streams.end()
        if self._log is not None:
            self._log.close()
            if self._log.lost:
                self._note(f"{self._log.lost} bytes of its output did not fit on the disk")
        return told

    def _tell_last(self, told: Json) -> None:
        """Tell who started it when all its output is out, however long the reader of that takes."""
        assert self._streams
        self._streams.end()
        self._tell(told)

    def _tell(self, told: Json) -> None:
        with suppress(OSError):
            self._client.send(told)

    def _mount(self) -> None:
        """Mount the snapshot a second time, for the container alone.

        In the tree it goes with the daemon, and has no setuid bits where others may look. What a supervisor that was
        killed left is taken away first.
        """
        unmount_rootfs(self.record)
        bind(f"/proc/self/fd/{self._rootfs}", str(self.record.rootfs), trusted=True)
        self._let_go()

    def _let_go(self) -> None:
        """Use the tree no more: nobody could remove the snapshot."""
        if self._rootfs != NONE:
            os.close(self._rootfs)
            self._rootfs = NONE

    def _delete(self) -> str:
        """Delete the container, whose files stay out of sight. Returns why it stays; the next daemon deletes it then.

        Busy it is as long as somebody is in it by the tree, or has mounted something there.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        let_delete(self._job.lock)
        with suppress(FileNotFoundError), opened(self.record.path) as place:
            while why := delete_by_tree(self._container, place):
                self._move_to(place)
                if why.errno != errno.EBUSY or time.monotonic() > deadline:
                    reason = os.strerror(why.errno or errno.EIO)
                    id = self._container.id
                    return f"container {id}: stays until imgfs is mounted again, or `imgfs delete`: {reason}"
                if not self._is_forgotten:
                    self._forget_runtime()  # what is in its way may be its own
                time.sleep(_RETRY)
            self._move_to(place)
        return ""

    def _move_to(self, place: int) -> None:
        """Know the record by where it is: out of sight, if it was deleted, and its id is another one's."""
        self.record = ContainerRecord(path_of(place))
        self._runtime = self._called(self._container.runtime)

    def _run(
        self, runtimes: Sequence[InstalledRuntime], pid_file: Path, streams: Streams
    ) -> tuple[OciRuntime, list[str]]:
        """Have the first runtime run it that can; which refused this host is remembered. Raises what the first did."""
        refused: list[tuple[InstalledRuntime, RuntimeFailed]] = []
        for one in runtimes:
            runtime = self._called(one)
            stdio, console, complaint = streams.stdio, streams.console, streams.complaint
            try:
                called = msgspec.structs.replace(runtime, stop=self._client.fileno())
                called.run(self._container.runtime_id, self.record.bundle, pid_file, stdio, console, complaint)
            except RuntimeFailed as error:
                if error.exit_code is not None or error.hangs:
                    raise
                refused.append((one, error))
                with suppress(ImgfsError):
                    runtime.delete(self._container.runtime_id, force=True)
                clear_leavings(self._records, self._container)
                continue
            for other, error in refused:
                remember_refusal(other, error.message, self._records.runtime_root)
            self._keep_runtime(one)
            return runtime, [f"{error.message}; {one.name} is used, until the next boot" for _, error in refused]
        raise refused[0][1]

    def _called(self, runtime: InstalledRuntime) -> OciRuntime:
        root, log = self._records.runtime_root, self.record.path / "runtime.log"
        return OciRuntime(runtime.name, runtime.path, root, log, self._job.deadline)

    def _keep_runtime(self, runtime: InstalledRuntime) -> None:
        if self._container.runtime != runtime:
            self._container = msgspec.structs.replace(self._container, runtime=runtime)
            self.record.put_container(self._container)

    def _answer(self, message: Json) -> Json:
        what = message.get("do")
        if what == "kill":
            self._kill(number_of(message, "signal", _SIGNALS), everybody=message.get("all") is True)
        elif what == "stop":
            self._kill(stop_signal(self._container), everybody=False)
        elif what == "resize" and self._streams:
            self._streams.resize(number_of(message, "rows", 0xFFFF), number_of(message, "columns", 0xFFFF))
        else:
            raise unknown(message)
        return {"ok": True}

    def _kill(self, number: int, *, everybody: bool) -> None:
        if self._status.status == "stopped":
            raise Refused(f"container {self._container.id}: has ended; it gets no signal any more", errno.ESRCH)
        if everybody and self._runtime is not None:
            self._runtime.kill(self._container.runtime_id, number, all=True)
        else:
            signal.pidfd_send_signal(self._process, number)

    def _forget_runtime(self) -> None:
        assert self._runtime
        self._is_forgotten = True
        try:
            self._runtime.delete(self._container.runtime_id)
        except ImgfsError:
            with suppress(ImgfsError):
                self._runtime.delete(self._container.runtime_id, force=True)
            clear_leavings(self._records, self._container)
        with suppress(ImgfsError):
            unmount_rootfs(self.record)

    def _put_status(self) -> None:
        """Until the disk takes it: a status is never lost as long as somebody knows it.

        Where it does not after a while, whoever waits is told all the same: it may never be one that takes it.
        """
        why = self._refusal_of_disk()
        while why is not None:
            self._pause()
            why = self._refusal_of_disk()
            if why is not None and not self._is_told:
                self._is_told = True
                told = {"ok": True, "is_kept": False, "status": msgspec.to_builtins(self._status), "notes": [why]}
                if self._server is not None:
                    self._server.tell(told)
                try:
                    threading.Thread(target=self._tell_last, args=(told,), daemon=True).start()
                except RuntimeError:  # there can be no other thread
                    self._tell(told)

    def _pause(self) -> None:
        if self._server is None:
            time.sleep(_RETRY)
        else:
            self._server.serve_for(_RETRY)

    def _refusal_of_disk(self) -> str | None:
        """Try to write the status down; why that was not possible."""
        try:
            self.record.put_status(self._status)
        except FileNotFoundError:
            return None  # the record was taken away by hand
        except OSError as error:
            why, id = from_os(error, f"container {self._container.id}").message, self._container.id
            return f"{why}; how it ended is written down then, as long as the process imgfs:{id} lives"
        return None

    def _note(self, words: str) -> None:
        self._status = msgspec.structs.replace(self._status, reason=f"{self._status.reason}; {words}".lstrip("; "))
        self._put_status()


def stop_signal(container: Container) -> int:
    """What asks the container's program to end."""
    return signal_number(container.stop_signal, f"container {container.id}")


def _refusal(error: ImgfsError) -> Json:
    code = error.exit_code if isinstance(error, RuntimeFailed) else None
    return {"error": error.message, "errno": error.errno, "exit_code": code}


def outcome(process: int, status: ContainerStatus, container: Container, streams: Streams) -> ContainerStatus:
    """The last status after `status`; takes the end of the process of that pidfd, which has ended."""
    was_refused = status.pid is not None and is_before_program(status.pid)
    found = os.waitid(os.P_PIDFD, process, os.WEXITED)
    finished, kills = now(), oom_kills(container.snapshot)
    by_signal = found is not None and found.si_code != os.CLD_EXITED
    value = found.si_status if found is not None else 0
    words: list[str] = []
    if by_signal:
        words.append(f"ended by signal {value} ({_name(value)})")
    elif value and was_refused:
        said = streams.first()  # nobody's but the runtime's, as no program was there
        value = shell_code_of(said) or NOT_EXECUTABLE
        words.append(f"the kernel refused it: {said}")
    if kills:
        words.append("the kernel killed for want of memory")
    return msgspec.structs.replace(
        status,
        status="stopped",
        pid=None,
        start_time=None,
        finished=finished,
        exit_code=128 + value if by_signal else value,
        signal=value if by_signal else None,
        oom=kills > 0,
        reason="; ".join(words),
    )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time"
