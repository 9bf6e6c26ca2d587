"""The fork server: `python -m imgfs.forkserver.server LISTENER MOUNTPOINT` forks a preloaded child for each command.

It is one process beside the daemon, without threads, and holds only its socket open. Containers that its children start
are not its children. It exits with the daemon, which holds the write end of its stdin, and after some time without
commands.
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
"""Seconds without a command after which the fork server exits. The daemon starts another one for the next caller."""
_QUIET = 0.1
"""Seconds without a command after which the fork server prepares a child.

While commands arrive, that would slow them down.
"""
_LIFELINE = 0
_PRELOADED = ("imgfs.cli.containers.foreground", "imgfs.execution.supervisor.life")
"""Modules that the commands import when they run."""


def serve(listener: socket.socket, mountpoint: str) -> None:
    """Serve until the daemon exits or no command arrives for `_IDLE` seconds.

    SIGCHLD is ignored, so the kernel reaps children.
    """
    facts = _load(mountpoint)
    listener.settimeout(0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(_LIFELINE, select.POLLIN)
    prepared: Child | None = None
    is_quiet = False
    while True:
        ready = dict(poll.poll(1000 * (_IDLE if is_quiet else _QUIET)))
        if _LIFELINE in ready or (is_quiet and not ready):
            return
        is_quiet = not ready
        with suppress(OSError):  # a caller without a child runs its command itself
            if is_quiet:
                prepared = prepared or Child(listener, facts, is_prepared=True)
                continue
            caller, _ = listener.accept()
            with caller:
                chosen, prepared = prepared, None
                if not (chosen and chosen.hand_over(caller)):
                    Child(listener, facts, is_prepared=False).hand_over(caller)


def _load(mountpoint: str) -> Facts | None:
    """Import and initialise what the commands need, so that children share that memory.

    This also reads the daemon's state.json once and builds the documents of a start once.
    """
    for module in _PRELOADED:
        importlib.import_module(module)
    with program.make_context("imgfs", ["x"], resilient_parsing=True) as root_context:  # parent of the subcommands
        for command in (run, start):
            command.make_context(command.name, ["x"], parent=root_context, resilient_parsing=True)
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
