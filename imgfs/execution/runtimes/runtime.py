"""Calling an OCI runtime (runtime-spec, runtime.md; the command line that crun, runc and youki share).

Each call has a deadline: a runtime that hangs is killed with its children, and told by name, command and seconds. What
went wrong is read from the runtime's own log, because its stderr is the container's.
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
"""Seconds that a call may take. With a hundred starts at once, on two cores, a good one takes ten."""
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
"""What a shell exits with where a command is not found, or cannot be executed."""

_FORKED_ONLY = 0x40
"""PF_FORKNOEXEC, of the flags in proc_pid_stat(5): forked, and no execve(2) since. Runtimes fork what is to become the
program; nothing that it does once it is the program sets this again, as a process may do with its name.
"""


class RuntimeFailed(ImgfsError):
    """A runtime refused, or did not answer. `exit_code` is a shell's where it was about the command itself."""

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
    """An installed runtime. `root` is where it keeps its state; blocking calls, all of them."""

    name: str
    path: str
    root: Path
    log: Path
    """Where it says what went wrong."""
    deadline: float = DEADLINE
    stop: int = NONE
    """When this is readable, a call is given up."""

    def run(
        self,
        id: str,
        bundle: Path,
        pid_file: Path,
        stdio: Sequence[int],
        console: str | None = None,
        complaint: Callable[[], str] = lambda: "",
    ) -> None:
        """Make the container and begin its program, which does not wait for the runtime. Raises RuntimeFailed.

        After a failure the program may have begun: `delete` it by force. A program that the kernel refuses is none
        (`is_before_program`). `stdio` are the three descriptors of the process; `console` is the socket that gets the
        terminal instead. What a runtime that failed said on these is asked for by `complaint`.
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
        """Remove what the runtime keeps, and the cgroup; with `force` end the processes first. Raises RuntimeFailed."""
        self._call("delete", *(["--force"] if force else []), id)

    def kill(self, id: str, number: int, *, all: bool = False) -> None:
        """Send a signal to the first process, or to all. Raises RuntimeFailed."""
        self._call("kill", *(["--all"] if all else []), id, str(number))

    def words(self, command: str, *arguments: str) -> list[str]:
        """The command line of a call, for whoever waits for it himself."""
        options = ["--root", str(self.root), "--log", str(self.log), "--log-format", "json"]
        return [self.path, *options, command, *arguments]

    def refusal(self, command: str, code: int) -> RuntimeFailed | None:
        """Why such a call ended with `code`; None where the runtime has no complaint, so that it is the program's."""
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
            raise NotFound(f"runtime {self.name}: {self.path} is gone; install it again") from None
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
        """This one, with an empty log; none where the disk takes no change: what runs can be ended all the same."""
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
                f"runtime {self.name}: `{command}` gave no answer for {self.deadline:g} s and was killed; "
                f"choose another runtime in imgfs.toml, or give it more deadline_seconds",
                hangs=True,
            )
        if ended not in ready:
            raise Cancelled(f"runtime {self.name}: `{command}` was given up")

    def _failure(self, command: str, code: int, complaint: str) -> RuntimeFailed:
        said = _last_error(self.log) or complaint[-_COMPLAINT_MAX:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = said or f"it said nothing ({how})"
        return RuntimeFailed(
            f"runtime {self.name}: {command}: {text}", shell_code_of(said) if command in ("run", "exec") else None
        )


def is_before_program(pid: int) -> bool:
    """Whether a process, which may have ended and is not buried, never became the program that it was to become."""
    try:
        flags = int(stat_of(pid)[FLAGS])
    except OSError:
        return False
    return bool(flags & _FORKED_ONLY)


def shell_code(number: int) -> int:
    """What a shell exits with where execve(2) fails so."""
    return NO_PROGRAM if number == errno.ENOENT else NOT_EXECUTABLE


def shell_code_of(said: str) -> int | None:
    """The same by a runtime's words; None where they are of something else."""
    flags = re.IGNORECASE | re.DOTALL
    if re.search(_NO_PERMISSION, said, flags):
        return NOT_EXECUTABLE
    return NO_PROGRAM if re.search(_NO_PROGRAM, said, flags) else None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Runtimes start helpers; in one session of their own they end together."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_error(log: Path) -> str:
    """The last error of a log of JSON lines; else its last line."""
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
    """What a line says, if it is an error: `msg` of crun and runc, `fields.message` of youki."""
    try:
        entry = msgspec.json.decode(line, type=_LogLine)
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return (entry.msg or entry.fields.get("message", "")) if entry.level.lower() in _ERRORS else ""
