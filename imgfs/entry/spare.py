"""A child of the starter that is there before anybody asks, with the supervisor that its container will have.

After a fork(2) the kernel copies each page as it is written to, and two processes that begin so spend more time in
these faults than on what they do. Those of a spare have all their pages, and wait.
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
from imgfs.execution.control import Connection
from imgfs.execution.launching import Waiting
from imgfs.kernel.memory import own_pages

_WORD = b"yours"


class Spare:
    """One that waits for its only command. It ends when nobody holds the other end of its connection."""

    def __init__(self, listener: socket.socket, facts: Facts | None) -> None:
        """Begin it. Raises OSError. The `listener` is not for children."""
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                if not os.fork():
                    listener.close()
                    self._connection.close()
                    _wait(theirs, facts)
            except OSError:
                self._connection.close()
                raise

    def give(self, asking: socket.socket) -> bool:
        """Have it do what is asked for; False where it is gone. Either way it is nobody's spare any more."""
        with self._connection:
            try:
                socket.send_fds(self._connection, [_WORD], [asking.fileno()])
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Have it end."""
        self._connection.close()


def _wait(connection: socket.socket, facts: Facts | None) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(ImgfsError, OSError):
            waiting = Waiting("", forked=True, first=_come_along)
            own_pages()
            _, files, _, _ = socket.recv_fds(connection, len(_WORD), 1)
            connection.close()
            if files:
                serve_one(socket.socket(fileno=files[0]), Served(facts, waiting))
    finally:
        os._exit(0)


def _come_along(connection: Connection) -> bool:
    own_pages()
    return come_along(connection)
