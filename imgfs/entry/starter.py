"""`python -m imgfs.entry.starter LISTENER MOUNTPOINT`: does the commands of others, in children that have all loaded.

One process beside the daemon, with no thread and nothing open but its socket. A child takes over what the asking
process would have given to a child of its own, and does the command as if it were one; the containers that it starts
are nobody's here. Ends with the daemon, whose pipe is its stdin, and when nobody has asked for a while.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
from contextlib import suppress

import click

from imgfs.cli import main as program
from imgfs.cli.containers.run import run, start
from imgfs.cli.containers.site import Facts, facts_of
from imgfs.cli.served import Declined, Served
from imgfs.cli.tree import Tree
from imgfs.entry.likeness import become_like, ignore_like
from imgfs.entry.request import DECLINED, FILES, GO, PATIENCE, TAKEN, Request, program_here
from imgfs.execution.bundle.seccomp import DEFAULT
from imgfs.execution.rehearsal import rehearse

_IDLE = 300.0
"""Seconds without a command after which it ends; the daemon starts another one when somebody asks."""
_LIFELINE = 0
_LOADED_LATE = ("imgfs.cli.containers.running", "imgfs.execution.supervisor.life")
"""What commands load when they are called."""


def serve(listener: socket.socket, mountpoint: str) -> None:
    """Serve until the end. SIGCHLD is ignored, so the kernel buries children."""
    facts = _load(mountpoint)
    listener.settimeout(0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    waiting.register(_LIFELINE, select.POLLIN)
    while True:
        ready = dict(waiting.poll(_IDLE * 1000))
        if not ready or _LIFELINE in ready:
            return
        with suppress(OSError):  # who has no child here does it himself
            asking, _ = listener.accept()
            with asking:
                if not os.fork():
                    _child(listener, asking, facts)


def _load(mountpoint: str) -> Facts | None:
    """Have all loaded that the commands load when they are called, and leave it where children share it.

    What the tree says of its daemon is asked for once, too, and the documents of a start are made once for nobody.
    """
    for module in _LOADED_LATE:
        importlib.import_module(module)
    with program.make_context("imgfs", ["x"], resilient_parsing=True) as above:  # whose settings are theirs
        for command in (run, start):
            command.make_context(command.name, ["x"], parent=above, resilient_parsing=True)
    facts = None
    with suppress(OSError, click.ClickException):
        facts = facts_of(Tree.open(mountpoint))
    rehearse(facts.options.seccomp if facts else DEFAULT)
    gc.collect()
    gc.freeze()
    return facts


def _child(listener: socket.socket, asking: socket.socket, facts: Facts | None) -> None:
    """Never returns; by an exception only for a mistake in what is done, which is told where its stderr is."""
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(OSError):  # whoever asked has gone, or is another kind of process: he does it himself
        _serve_one(asking, Served(facts))
    os._exit(0)


def _serve_one(asking: socket.socket, served: Served) -> None:
    asking.settimeout(PATIENCE)
    request, files = _receive(asking)
    pid, user = _peer(asking)
    if user != os.geteuid() or request.program != program_here() or not become_like(pid):
        return
    ignore_like(pid)  # until it hears TAKEN it is as it was begun
    own = os.pidfd_open(os.getpid())
    socket.send_fds(asking, [TAKEN], [own])
    os.close(own)
    if asking.recv(len(GO)) != GO:
        return
    asking.settimeout(None)
    _die_with(asking)
    _become(request, files)
    asking.send(_do(served))


def _receive(asking: socket.socket) -> tuple[Request, list[int]]:
    """The request, and the other descriptors. Raises OSError where there is none."""
    _, files, _, _ = socket.recv_fds(asking, 64, FILES)
    if len(files) != FILES:
        raise ConnectionError
    with open(files.pop(), "rb") as file:
        file.seek(0)
        return Request.decode(file.read()), files


def _peer(asking: socket.socket) -> tuple[int, int]:
    """Pid and user of who asks."""
    credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    numbers = [int.from_bytes(credentials[at : at + 4], sys.byteorder) for at in (0, 4)]
    return numbers[0], numbers[1]


def _die_with(asking: socket.socket) -> None:
    """Have the kernel kill this process when the asking one is gone: it writes nothing more, so any sign is its end."""
    fcntl.fcntl(asking, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(asking, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(asking, fcntl.F_SETFL, fcntl.fcntl(asking, fcntl.F_GETFL) | os.O_ASYNC)
    waiting = select.poll()
    waiting.register(asking, select.POLLIN)
    if waiting.poll(0):
        raise ConnectionError


def _become(request: Request, files: list[int]) -> None:
    """Take over what came with the request."""
    *streams, directory = files
    os.fchdir(directory)
    os.close(directory)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.umask(request.umask)
    os.environ.clear()
    for name, _, value in (one.partition(b"=") for one in request.variables):
        os.environb[name] = value
    sys.argv = [os.fsdecode(word) for word in request.words]


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


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _listener:
        serve(_listener, sys.argv[2])
    os._exit(0)
