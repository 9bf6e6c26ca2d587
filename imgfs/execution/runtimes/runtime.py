"""Calls an OCI runtime (runtime-spec, runtime.md) by the command line that crun, runc and youki share.

Each call has a deadline. A runtime that hangs is killed with its children, and the error names the runtime, the command
and the seconds. Errors are read from the runtime's log, because its stderr is the container's.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from imgfs.errors import Cancelled, ImgfsError, NotFound
from imgfs.execution.launch import NONE
from imgfs.kernel.proc import FLAGS, stat_of

DEADLINE = 60.0
"""Seconds that a call may take. A good call takes ten if a hundred containers start at once on two cores."""
_LOG_READ = 1 << 16
_COMPLAINT_MAX = 1000
_UMASK = 0o022
_ERRORS = ("error", "fatal")
_NO_PROGRAM = (
    r"executable file (not found|.* not found)|exec.*no such file or directory|no such file or directory.*exec"
    r"|failed to find .*executable|executable .* not found"
)
_NO_PERMISSION = (
    r"exec.*(permission denied|is a directory|exec format error)|open executable: permission denied"
    r"|not executable|executable permission"
)
NO_PROGRAM, NOT_EXECUTABLE = 127, 126
"""Exit codes of a shell for a command that is not found, or cannot be executed."""

_FORKED_ONLY = 0x40
"""PF_FORKNOEXEC in the flags of proc_pid_stat(5): the process was forked and has not called execve(2) since.

Runtimes fork the process that becomes the program. A program cannot set this flag again, while it can change its name.
"""


class RuntimeFailed(ImgfsError):
    """A runtime refused or did not answer. `exit_code` is that of a shell if the command was at fault."""

    errno = errno.EIO

    def __init__(self, message: str, exit_code: int | None = None, *, hangs: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.hangs = hangs


class _LogLine(msgspec.Struct):
    level: str = ""
    msg: str = ""
    fields: dict[str, str] = {}


class OciRuntime(msgspec.Struct, frozen=True):
    """An installed runtime. `root` is the directory of its state. All calls block."""

    name: str
    path: str
    root: Path
    log: Path
    """Where the runtime writes its errors."""
    deadline: float = DEADLINE
    stop: int = NONE
    """If this becomes readable, a call is cancelled."""

    def run(
        self,
        id: str,
        bundle: Path,
        pid_file: Path,
        stdio: Sequence[int],
        console: str | None = None,
        complaint: Callable[[], str] = lambda: "",
    ) -> None:
        """Create the container and begin its program. Returns while the program runs. Raises RuntimeFailed.

        After a failure the program may have begun: call `delete` with force. A program that the kernel refuses never
        begins (`never_executed`). `stdio` are the three descriptors of the process. `console` is the path of the
        socket that receives the terminal instead. `complaint` returns what a failed runtime wrote to these streams.
        """
        terminal = ["--console-socket", console] if console else []
        self._call(
            "run",
            "--detach",
            "--bundle",
            str(bundle),
            "--pid-file",
            str(pid_file),
            *terminal,
            id,
            stdio=stdio,
            complaint=complaint,
        )

    def delete(self, id: str, *, force: bool = False) -> None:
        """Remove the runtime's state and the cgroup; with `force` kill the processes first. Raises RuntimeFailed."""
        self._call("delete", *(["--force"] if force else []), id)

    def kill(self, id: str, number: int, *, all: bool = False) -> None:
        """Send a signal to the first process, or to all. Raises RuntimeFailed."""
        self._call("kill", *(["--all"] if all else []), id, str(number))

    def words(self, command: str, *arguments: str) -> list[str]:
        """Return the command line of a call, for callers that run it themselves."""
        options = ["--root", str(self.root), "--log", str(self.log), "--log-format", "json"]
        return [self.path, *options, command, *arguments]

    def refusal(self, command: str, code: int) -> RuntimeFailed | None:
        """Return why such a call exited with `code`; None if the log has no error, so that `code` is the program's."""
        return self._failure(command, code, "") if code and any(map(_error_of, _tail(self.log))) else None

    def _call(
        self,
        command: str,
        *arguments: str,
        stdio: Sequence[int] | None = None,
        complaint: Callable[[], str] = lambda: "",
    ) -> None:
        called = self._with_log()
        stdin, stdout, stderr = stdio or (subprocess.DEVNULL,) * 3
        try:
            process = subprocess.Popen(
                called.words(command, *arguments),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd="/",
                umask=_UMASK,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise NotFound(f"runtime {self.name}: {self.path} does not exist; install it again") from None
        except OSError as error:
            raise RuntimeFailed(f"runtime {self.name}: {self.path} cannot be run: {error.strerror}") from None
        try:
            self._wait(process, command)
        except BaseException:
            _kill_group(process)
            raise
        code = process.wait()
        if code:
            raise called._failure(command, code, complaint())

    def _with_log(self) -> OciRuntime:
        """Return this runtime with an emptied log, or without one if the disk refuses: containers must be killable even
        then.
        """
        try:
            os.close(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        except OSError:
            return msgspec.structs.replace(self, log=Path(os.devnull))
        return self

    def _wait(self, process: subprocess.Popen[bytes], command: str) -> None:
        ended = os.pidfd_open(process.pid)
        try:
            waiting = select.poll()
            for descriptor in {ended, self.stop} - {NONE}:
                waiting.register(descriptor, select.POLLIN)
            ready = dict(waiting.poll(self.deadline * 1000))
        finally:
            os.close(ended)
        if not ready:
            raise RuntimeFailed(
                f"runtime {self.name}: `{command}` did not finish within {self.deadline:g} s and was killed; "
                f"choose another runtime in imgfs.toml, or increase deadline_seconds",
                hangs=True,
            )
        if ended not in ready:
            raise Cancelled(f"runtime {self.name}: `{command}` was cancelled")

    def _failure(self, command: str, code: int, complaint: str) -> RuntimeFailed:
        said = _last_error(self.log) or complaint[-_COMPLAINT_MAX:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = said or f"no error message ({how})"
        return RuntimeFailed(
            f"runtime {self.name}: {command}: {text}", shell_code_in(said) if command in ("run", "exec") else None
        )


def never_executed(pid: int) -> bool:
    """Return whether a process, possibly a zombie, never executed its program."""
    try:
        flags = int(stat_of(pid)[FLAGS])
    except OSError:
        return False
    return bool(flags & _FORKED_ONLY)


def shell_code(number: int) -> int:
    """Return the exit code of a shell for an errno of execve(2)."""
    return NO_PROGRAM if number == errno.ENOENT else NOT_EXECUTABLE


def shell_code_in(said: str) -> int | None:
    """Return the same for a runtime's message; None if the message is about something else."""
    flags = re.IGNORECASE | re.DOTALL
    if re.search(_NO_PERMISSION, said, flags):
        return NOT_EXECUTABLE
    return NO_PROGRAM if re.search(_NO_PROGRAM, said, flags) else None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a runtime with its helper processes, which share its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_error(log: Path) -> str:
    """Return the last error in a log of JSON lines, or else its last line."""
    lines = _tail(log)
    for line in reversed(lines):
        if said := _error_of(line):
            return said
    return lines[-1].strip() if lines else ""


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_READ))
            return file.read(_LOG_READ).decode(errors="replace").splitlines()
    except OSError:
        return []


def _error_of(line: str) -> str:
    """Return the message of a line if it is an error: `msg` of crun and runc, `fields.message` of youki."""
    try:
        entry = msgspec.json.decode(line, type=_LogLine)
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return (entry.msg or entry.fields.get("message", "")) if entry.level.lower() in _ERRORS else ""
