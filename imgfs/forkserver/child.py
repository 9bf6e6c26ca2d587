"""A child of the starter, with the supervisor that its container will have; made when somebody asks, or before.

The supervisor is forked first of all: later, the child would have a page copied twice that it writes to, when it is its
parent's too and when it is its supervisor's. A spare, which is made before, has all pages copied ahead; a supervisor,
which may live for long, only those that it writes to.
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
from imgfs.cli.served import Declined, Served
from imgfs.errors import ImgfsError
from imgfs.execution.control import Connection, peer_of
from imgfs.execution.launch import IdleSupervisor
from imgfs.forkserver.inherit import inherit_from, inherit_ignored_signals
from imgfs.forkserver.request import DECLINED, FILES, GO, PATIENCE, TAKEN, ForkRequest, program_here
from imgfs.kernel.memory import own_pages
from imgfs.kernel.process import die_with

_WORD = b"yours"


class Child:
    """One that waits for its only command. It ends when nobody holds the other end of its connection."""

    def __init__(self, listener: socket.socket, facts: Facts | None, *, is_spare: bool) -> None:
        """Begin it. Raises OSError. The `listener` is not for children."""
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                if not os.fork():
                    listener.close()
                    self._connection.close()
                    _live(theirs, facts, is_spare=is_spare)
            except OSError:
                self._connection.close()
                raise

    def give(self, asking: socket.socket) -> bool:
        """Have it do what is asked for; False where it is gone. It is not to be given anything else."""
        with self._connection:
            try:
                socket.send_fds(self._connection, [_WORD], [asking.fileno()])
            except OSError:
                return False
        return True


def _live(connection: socket.socket, facts: Facts | None, *, is_spare: bool) -> NoReturn:
    """By an exception only for a mistake in what is done, which is told where its stderr is."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(ImgfsError, OSError, KeyboardInterrupt):
        waiting = IdleSupervisor("", come_along)
        if is_spare:
            own_pages()
        _, files, _, _ = socket.recv_fds(connection, len(_WORD), 1)
        connection.close()
        if files:
            serve_one(socket.socket(fileno=files[0]), Served(facts, waiting))
    os._exit(0)


def serve_one(asking: socket.socket, served: Served) -> None:
    """Do what is asked for, to its end; nothing where this process cannot be as the asking one's child would be.

    Raises OSError where the other side has gone, or is another kind of process: he does it himself; KeyboardInterrupt
    before the command is there to say so: he ends by the same signal.
    """
    asking.settimeout(PATIENCE)
    *files, life, file = _receive(asking)
    request = ForkRequest.read(file)
    pid, user = peer_of(asking)
    if user != os.geteuid() or request.program != program_here() or not _are_like(pid, file, served):
        return
    os.close(file)
    own = os.pidfd_open(os.getpid())
    socket.send_fds(asking, [TAKEN], [own])
    os.close(own)
    if asking.recv(len(GO)) != GO:
        return
    asking.settimeout(None)
    die_with(life)
    _become(request, files)
    asking.send(_do(served))


def come_along(connection: Connection) -> bool:
    """Be the supervisor that `serve_one` has waiting: become, beside it, like whoever asks. False where nobody does."""
    said, files = connection.receive_files(1)
    if not said:
        return False
    _take_variables(ForkRequest.read(files[0]))
    os.close(files[0])
    if not _is_like(int(said)):
        return False
    connection.send({"ok": True})
    return True


def _are_like(pid: int, file: int, served: Served) -> bool:
    """Whether this process, and the supervisor that it has waiting, now are as children of process `pid` are.

    `file` has its request.
    """
    control = served.waiting.control
    control.send_files(b"%d" % pid, [file])
    return _is_like(pid) and control.receive() is not None


def _is_like(pid: int) -> bool:
    if not inherit_from(pid):
        return False
    inherit_ignored_signals(pid)  # until it hears TAKEN it is as it was begun
    return True


def _receive(asking: socket.socket) -> list[int]:
    """What comes with a request. Raises OSError where there is none."""
    _, files, _, _ = socket.recv_fds(asking, 64, FILES)
    if len(files) != FILES:
        raise ConnectionError
    return files


def _become(request: ForkRequest, files: list[int]) -> None:
    """Take over what came with the request."""
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


def _do(served: Served) -> bytes:
    """Do the command; its exit code, or DECLINED."""
    name, *words = sys.argv
    called = "python -m imgfs" if os.path.basename(name) == "__main__.py" else os.path.basename(name)
    code: object = None
    try:
        program.main(words, called, obj=served)
    except Declined:
        return DECLINED
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    return b"%d" % (code if isinstance(code, int) else 0 if code is None else 1)
