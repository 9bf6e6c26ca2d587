"""The life of a container from its record to its end: start it by a runtime, wait, report the end, clean up.

Order: the status is on disk before it is reported. The client, which started the container, gets its report after the
runtime has forgotten the container, or with --rm after the container is deleted. The lock is released last. A failed
start of a new container leaves nothing; a failed restart leaves the container as it was.
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
from imgfs.execution.control import Connection, Json, Refused, open_directory
from imgfs.execution.launch import NONE, Job, decode_job
from imgfs.execution.records.record import (
    Container,
    ContainerRecord,
    ContainerStatus,
    InstalledRuntime,
    allow_deletion,
    now,
    start_time,
)
from imgfs.execution.records.records import GONE, ContainerRecords, delete_removed
from imgfs.execution.removal import (
    delete_through_mount,
    discard_runtime,
    path_of,
    remove_abandoned,
    remove_leftovers,
    remove_unstarted,
    unmount_rootfs,
)
from imgfs.execution.runtimes.choice import remember_refusal
from imgfs.execution.runtimes.runtime import NOT_EXECUTABLE, OciRuntime, RuntimeFailed, never_executed, shell_code_in
from imgfs.execution.signals import signal_number
from imgfs.execution.supervisor.server import (
    ControlServer,
    has_left,
    is_ready,
    number_of,
    start_thread,
    unknown,
    wait_for_exit,
)
from imgfs.execution.supervisor.streams import Log, Streams, streams_of
from imgfs.kernel.bind import bind
from imgfs.kernel.process import adopt_orphans

_RETRY = 1.0
"""Seconds between two attempts to write a status that the disk refuses, or to delete a busy container."""
_BUSY_SECONDS = 60.0
"""Seconds in which a container with --rm may stay busy after its end."""
_SIGNALS = 64
_FILES_MAX = 8


def supervise(client: Connection) -> None:
    """Receive a job from `client` and run its container to the end. Return at once if `client` closes without a job.

    The first answer reports whether the program runs.
    """
    data, files = client.receive_files(_FILES_MAX)
    if not data:
        return
    job = decode_job(data, files)
    adopt_orphans()
    os.umask(0o077)
    os.ftruncate(job.lock, 0)  # not through Disk: after a crash no process holds the lock
    os.pwrite(job.lock, f"pid {os.getpid()}\n".encode(), 0)
    Path("/proc/self/comm").write_text(f"imgfs:{job.id}")
    life = _Supervision(job, client)
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


class _Supervision:
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
        self._is_reported = False
        self._join_cleanup: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Create the container and begin its program. Raises ImgfsError and OSError; the caller then calls `undo`."""
        job = self._job
        if job.is_new:
            self.record = self._records.publish(self.record, job.id)
        record = self.record
        self._log = Log(record.log, job.log_bytes) if job.is_logged else None
        self._streams = streams_of(job, record, self._log)
        self._server = ControlServer(record.control, self._client, self._answer)
        pid_file = record.path / "pid"
        self._mount()
        if has_left(self._client):
            raise Cancelled(f"container {record.id}: the caller cancelled its start")
        self._runtime, notes = self._run(job.runtimes, pid_file, self._streams)
        pid, started = int(pid_file.read_text()), now()
        self._process = os.pidfd_open(pid)
        self._streams.begin()
        self._status = ContainerStatus(status="running", pid=pid, start_time=start_time(pid), started=started)
        if not is_ready(self._process):  # a program that has already ended is never recorded as running
            record.write_status(self._status)
        with suppress(OSError):
            self._client.send({"ok": True, "pid": pid, "notes": notes})

    def undo(self, error: ImgfsError) -> None:
        """Remove what was begun and report the error to the client. A container that is not new is as it was before."""
        self._close_rootfs()
        notes: list[str] = []
        if self.record.path.name == self._job.id:  # otherwise the ID belongs to another container
            with suppress(ImgfsError):
                discard_runtime(self._records, self.record, self._container)
        if self._streams is not None:
            self._streams.abandon()
        if self._server is not None:
            self._server.close(_error_message(error))
        try:
            if self._job.is_new:
                remove_unstarted(self._records, self.record, self._container)
            else:
                self.record.write_status(self._before)
        except (ImgfsError, OSError) as left:
            notes.append(str(left))
        with suppress(OSError):
            self._client.send(_error_message(error) | {"notes": notes})

    def live(self) -> None:
        """Wait until the program has ended."""
        assert self._server
        self._join_cleanup = start_thread(lambda: remove_abandoned(self._records, self._container.mountpoint))
        self._server.serve(self._process)

    def end(self) -> None:
        """Record how the program ended, report it to all waiters, and clean up."""
        assert self._streams
        self._status = final_status(self._process, self._status, self._container, self._streams)
        if not self._container.remove:
            join_forgetting = start_thread(self._forget_runtime)
            report = self._keep()
            join_forgetting()
            self._report(report)
            return
        report = self._keep()
        if reason := self._delete():
            report["notes"] = [reason]
        self._report(report)
        wait_for_exit(self._client)  # the rest is out of sight and no process waits for it
        if not self._is_forgotten:
            self._forget_runtime()
        if self.record.path.name.startswith(GONE):
            delete_removed(self.record)

    def leave(self) -> None:
        """Release the lock, and wait for the cleanup of abandoned containers."""
        os.close(self._job.lock)
        self._join_cleanup()

    def _keep(self) -> Json:
        """Write the final status, report it to all waiters except the client, and finish the output.

        Return the client's report.
        """
        assert self._server
        assert self._streams
        self._put_status()
        report: Json = {"ok": True, "status": msgspec.to_builtins(self._status)}
        self._server.close(report)
        self._server = None
        self._streams.end()
        if self._log is not None:
            self._log.close()
            if self._log.lost:
                self._note(f"{self._log.lost} bytes of its output were lost because the disk refused them")
        return report

    def _report_after_output(self, report: Json) -> None:
        """Send the report to the client after all output is written, however slow its reader is."""
        assert self._streams
        self._streams.end()
        self._report(report)

    def _report(self, report: Json) -> None:
        with suppress(OSError):
            self._client.send(report)

    def _mount(self) -> None:
        """Mount the snapshot a second time, for the container alone.

        The mount in the tree goes with the daemon, and has no setuid bits if other users may look into the tree. The
        mount that a killed supervisor left is removed first.
        """
        unmount_rootfs(self.record)
        bind(f"/proc/self/fd/{self._rootfs}", str(self.record.rootfs), trusted=True)
        self._close_rootfs()

    def _close_rootfs(self) -> None:
        """Close the rootfs in the tree. While it is open, the snapshot cannot be removed."""
        if self._rootfs != NONE:
            os.close(self._rootfs)
            self._rootfs = NONE

    def _delete(self) -> str:
        """Delete the container through the mount; its files stay, out of sight. Return the reason if it is not deleted.

        The container is busy while a process uses its rootfs in the tree or has mounted something there. The next
        daemon deletes a container that was left.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        allow_deletion(self._job.lock)
        with suppress(FileNotFoundError), open_directory(self.record.path) as place:
            while error := delete_through_mount(self._container, place):
                self._move_to(place)
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    reason = os.strerror(error.errno or errno.EIO)
                    id = self._container.id
                    return f"container {id}: is not deleted; the next mount deletes it, or run `imgfs delete`: {reason}"
                if not self._is_forgotten:
                    self._forget_runtime()  # the mount of the runtime may be what makes it busy
                time.sleep(_RETRY)
            self._move_to(place)
        return ""

    def _move_to(self, place: int) -> None:
        """Follow the record to its current path: if it was deleted, its ID may belong to another container."""
        self.record = ContainerRecord(path_of(place))
        self._runtime = self._runtime_of(self._container.runtime)

    def _run(
        self, runtimes: Sequence[InstalledRuntime], pid_file: Path, streams: Streams
    ) -> tuple[OciRuntime, list[str]]:
        """Run the container with the first runtime that accepts this host, and remember the refusals of the others.

        Raises the error of the first runtime if all of them refuse.
        """
        refused: list[tuple[InstalledRuntime, RuntimeFailed]] = []
        for one in runtimes:
            runtime = self._runtime_of(one)
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
                remove_leftovers(self._records, self._container)
                continue
            for other, error in refused:
                remember_refusal(other, error.message, self._records.runtime_root)
            self._keep_runtime(one)
            return runtime, [f"{error.message}; {one.name} is used instead until the next boot" for _, error in refused]
        raise refused[0][1]

    def _runtime_of(self, runtime: InstalledRuntime) -> OciRuntime:
        root, log = self._records.runtime_root, self.record.path / "runtime.log"
        return OciRuntime(runtime.name, runtime.path, root, log, self._job.deadline)

    def _keep_runtime(self, runtime: InstalledRuntime) -> None:
        if self._container.runtime != runtime:
            self._container = msgspec.structs.replace(self._container, runtime=runtime)
            self.record.write_container(self._container)

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
            raise Refused(f"container {self._container.id}: has ended; it cannot get a signal", errno.ESRCH)
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
            remove_leftovers(self._records, self._container)
        with suppress(ImgfsError):
            unmount_rootfs(self.record)

    def _put_status(self) -> None:
        """Write the status, and retry until the disk accepts it, so that it is not lost while this process lives.

        After the second failure all waiters get the report anyway, because the disk may never accept a change again.
        """
        reason = self._refusal_of_disk()
        while reason is not None:
            self._pause()
            reason = self._refusal_of_disk()
            if reason is not None and not self._is_reported:
                self._is_reported = True
                report = {"ok": True, "is_kept": False, "status": msgspec.to_builtins(self._status), "notes": [reason]}
                if self._server is not None:
                    self._server.report_status(report)
                try:
                    threading.Thread(target=self._report_after_output, args=(report,), daemon=True).start()
                except RuntimeError:  # the limit of processes allows no other thread
                    self._report(report)

    def _pause(self) -> None:
        if self._server is None:
            time.sleep(_RETRY)
        else:
            self._server.serve_for(_RETRY)

    def _refusal_of_disk(self) -> str | None:
        """Try to write the status. Return the reason if the disk refuses."""
        try:
            self.record.write_status(self._status)
        except FileNotFoundError:
            return None  # the record was removed by hand
        except OSError as error:
            reason, id = from_os(error, f"container {self._container.id}").message, self._container.id
            return f"{reason}; its end is recorded as soon as the disk accepts it, while the process imgfs:{id} lives"
        return None

    def _note(self, words: str) -> None:
        self._status = msgspec.structs.replace(self._status, reason=f"{self._status.reason}; {words}".lstrip("; "))
        self._put_status()


def stop_signal(container: Container) -> int:
    """Return the signal that asks the container's program to end."""
    return signal_number(container.stop_signal, f"container {container.id}")


def _error_message(error: ImgfsError) -> Json:
    code = error.exit_code if isinstance(error, RuntimeFailed) else None
    return {"error": error.message, "errno": error.errno, "exit_code": code}


def final_status(process: int, status: ContainerStatus, container: Container, streams: Streams) -> ContainerStatus:
    """Return the final status. Reaps the ended process behind the pidfd `process`."""
    was_refused = status.pid is not None and never_executed(status.pid)
    found = os.waitid(os.P_PIDFD, process, os.WEXITED)
    finished, kills = now(), oom_kills(container.snapshot)
    by_signal = found is not None and found.si_code != os.CLD_EXITED
    value = found.si_status if found is not None else 0
    words: list[str] = []
    if by_signal:
        words.append(f"ended by signal {value} ({_name(value)})")
    elif value and was_refused:
        said = streams.first()  # no program ran, so the runtime wrote this
        value = shell_code_in(said) or NOT_EXECUTABLE
        words.append(f"the kernel refused to execute it: {said}")
    if kills:
        words.append("the kernel killed a process because memory ran out")
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
