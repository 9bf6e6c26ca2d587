"""`python -m imgfs.forkserver.server LISTENER MOUNTPOINT`: runs commands of other processes in preloaded children.

One process beside the daemon, with no thread and nothing open but its socket. A child takes over what the asking
process would have given to a child of its own, and does the command as if it were one; the containers that it starts
are nobody's here. Ends with the daemon, whose pipe is its stdin, and when nobody has asked for a while.
"""

from __future__ import annotations

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
from imgfs.cli.tree import Tree
from imgfs.execution.bundle.seccomp import DEFAULT
from imgfs.execution.warmup import warm_up
from imgfs.forkserver.child import Child

_IDLE = 300.0
"""Seconds without a command after which it ends; the daemon starts another one when somebody asks."""
_CALM = 0.1
"""Seconds without a command after which a spare is made for the next one: in a crowd it would take time from others."""
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
    spare: Child | None = None
    is_calm = False
    while True:
        ready = dict(waiting.poll(1000 * (_IDLE if is_calm else _CALM)))
        if _LIFELINE in ready or (is_calm and not ready):
            return
        is_calm = not ready
        with suppress(OSError):  # who has no child here does it himself
            if is_calm:
                spare = spare or Child(listener, facts, is_spare=True)
                continue
            asking, _ = listener.accept()
            with asking:
                given, spare = spare, None
                if not (given and given.give(asking)):
                    Child(listener, facts, is_spare=False).give(asking)


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
    warm_up(facts.options.seccomp if facts else DEFAULT)
    gc.collect()
    gc.freeze()
    return facts


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _listener:
        serve(_listener, sys.argv[2])
    os._exit(0)
