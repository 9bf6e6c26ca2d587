"""A child of the fork server: it takes over the attributes of the calling process and runs its command.

Each child forks the supervisor of its container before anything else. A supervisor that is forked later would copy
pages a second time, because the kernel copies a page for each process that writes to it. A prepared child, which is
forked before a caller connects, copies all of its pages ahead. The supervisor may live for long, so it copies only the
pages that it writes to.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from imgfs.cli import main as program
from imgfs.cli.containers.site import Facts
from imgfs.cli.forked import Declined, ForkedCommand
from imgfs.errors import ImgfsError
from imgfs.execution.control import Connection, peer_of
from imgfs.execution.launch import IdleSupervisor
from imgfs.forkserver.inherit import inherit_from, inherit_ignored_signals
from imgfs.forkserver.request import DECLINED, FILES, GO, PATIENCE, TAKEN, ForkRequest, program_here
from imgfs.kernel.memory import own_pages
from imgfs.kernel.process import die_with

_HANDED_OVER = b"yours"


class Child:
    """A child that waits for its only command. It exits when the other end of its connection is closed."""

    def __init__(self, listener: socket.socket, facts: Facts | None, *, is_prepared: bool) -> None:
        """Fork the child. Raises OSError. The child closes its copy of `listener`."""
        self._connection, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other_end:
            try:
                if not os.fork():
                    listener.close()
                    self._connection.close()
                    _run_child(other_end, facts, is_prepared=is_prepared)
            except OSError:
                self._connection.close()
                raise

    def hand_over(self, caller: socket.socket) -> bool:
        """Pass the caller's connection to the child. Return False if the child has exited. Call this once."""
        with self._connection:
            try:
                socket.send_fds(self._connection, [_HANDED_OVER], [caller.fileno()])
            except OSError:
                return False
        return True


def _run_child(connection: socket.socket, facts: Facts | None, *, is_prepared: bool) -> NoReturn:
    """Wait for the caller's connection, run its command and exit.

    Expected errors end the child silently. A programming error raises and shows a traceback on stderr.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(ImgfsError, OSError, KeyboardInterrupt):
        waiting = IdleSupervisor("", inherit_in_supervisor)
        if is_prepared:
            own_pages()
        _, files, _, _ = socket.recv_fds(connection, len(_HANDED_OVER), 1)
        connection.close()
        if files:
            run_request(socket.socket(fileno=files[0]), ForkedCommand(facts, waiting))
    os._exit(0)


def run_request(caller: socket.socket, forked_context: ForkedCommand) -> None:
    """Run the command of the caller to its end, or return at once if this process cannot take over the caller's
    attributes.

    Raises OSError if the caller has left or is another kind of process; the caller then runs the command itself. Raises
    KeyboardInterrupt if the caller is interrupted before the command handles interrupts; the caller dies of the same
    signal.
    """
    caller.settimeout(PATIENCE)
    *files, life, file = _receive(caller)
    request = ForkRequest.read(file)
    pid, user = peer_of(caller)
    if user != os.geteuid() or request.program != program_here() or not _inherit_both(pid, file, forked_context):
        return
    os.close(file)
    own = os.pidfd_open(os.getpid())
    socket.send_fds(caller, [TAKEN], [own])
    os.close(own)
    if caller.recv(len(GO)) != GO:
        return
    caller.settimeout(None)
    die_with(life)
    _take_over(request, files)
    caller.send(_run_command(forked_context))


def inherit_in_supervisor(connection: Connection) -> bool:
    """In the supervisor that the child forked: take over the caller's attributes, as the child does.

    Return False if the child has exited or an attribute differs.
    """
    said, files = connection.receive_files(1)
    if not said:
        return False
    _take_variables(ForkRequest.read(files[0]))
    os.close(files[0])
    if not _inherit(int(said)):
        return False
    connection.send({"ok": True})
    return True


def _inherit_both(pid: int, file: int, forked_context: ForkedCommand) -> bool:
    """Take over the attributes of process `pid`, here and in the waiting supervisor.

    Return False if one of them cannot.

    `file` contains the request of that process.
    """
    control = forked_context.waiting.control
    control.send_files(b"%d" % pid, [file])
    return _inherit(pid) and control.receive() is not None


def _inherit(pid: int) -> bool:
    if not inherit_from(pid):
        return False
    inherit_ignored_signals(pid)  # before TAKEN arrives, the caller still has the signal handlers that it started with
    return True


def _receive(caller: socket.socket) -> list[int]:
    """Receive the descriptors of a request. Raises OSError if there is no request."""
    _, files, _, _ = socket.recv_fds(caller, 64, FILES)
    if len(files) != FILES:
        raise ConnectionError
    return files


def _take_over(request: ForkRequest, files: list[int]) -> None:
    """Take over the descriptors, umask, environment and arguments of the request."""
    *streams, directory = files
    os.fchdir(directory)
    os.close(directory)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.umask(request.umask)
    _take_variables(request)
    sys.argv = [os.fsdecode(word) for word in request.words]


def _take_variables(request: ForkRequest) -> None:
    os.environ.clear()
    for name, _, value in (one.partition(b"=") for one in request.variables):
        os.environb[name] = value


def _run_command(forked_context: ForkedCommand) -> bytes:
    """Run the command. Return its exit code, or DECLINED."""
    name, *words = sys.argv
    called = "python -m imgfs" if os.path.basename(name) == "__main__.py" else os.path.basename(name)
    code: object = None
    try:
        program.main(words, called, obj=forked_context)
    except Declined:
        return DECLINED
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    return b"%d" % (code if isinstance(code, int) else 0 if code is None else 1)
