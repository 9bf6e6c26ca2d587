"""A child of the starter, with the supervisor that its container will have; made when somebody asks, or before.

The supervisor is forked first of all: later, the child would have a page copied twice that it writes to, when it is its
parent's too and when it is its supervisor's. A spare, which is made before, has all pages copied ahead; a supervisor,
which may live for long, only those that it writes to.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import NoReturn

from imgfs.cli.containers.site import Facts
from imgfs.cli.served import Served
from imgfs.entry.serving import come_along, serve_one
from imgfs.errors import ImgfsError
from imgfs.execution.launching import Waiting
from imgfs.kernel.memory import own_pages

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
        waiting = Waiting("", come_along)
        if is_spare:
            own_pages()
        _, files, _, _ = socket.recv_fds(connection, len(_WORD), 1)
        connection.close()
        if files:
            serve_one(socket.socket(fileno=files[0]), Served(facts, waiting))
    os._exit(0)
