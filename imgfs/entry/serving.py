"""Doing the command of another process, in a child of the starter, as if it were a child of that one."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from imgfs.cli import main as program
from imgfs.cli.served import Declined, Served
from imgfs.entry.likeness import become_like, ignore_like
from imgfs.entry.request import DECLINED, FILES, GO, PATIENCE, TAKEN, Request, program_here
from imgfs.execution.control import Connection, peer_of
from imgfs.kernel.process import die_with


def serve_one(asking: socket.socket, served: Served) -> None:
    """Do what is asked for, to its end; nothing where this process cannot be as the asking one's child would be.

    Raises OSError where the other side has gone, or is another kind of process: he does it himself; KeyboardInterrupt
    before the command is there to say so: he ends by the same signal.
    """
    asking.settimeout(PATIENCE)
    *files, life, file = _receive(asking)
    request = Request.read(file)
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
    _take_variables(Request.read(files[0]))
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
    if not become_like(pid):
        return False
    ignore_like(pid)  # until it hears TAKEN it is as it was begun
    return True


def _receive(asking: socket.socket) -> list[int]:
    """What comes with a request. Raises OSError where there is none."""
    _, files, _, _ = socket.recv_fds(asking, 64, FILES)
    if len(files) != FILES:
        raise ConnectionError
    return files


def _become(request: Request, files: list[int]) -> None:
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


def _take_variables(request: Request) -> None:
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
