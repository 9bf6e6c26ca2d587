"""Starting the process of a supervisor, ahead of the job that it gets: while it begins, its container is prepared."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from imgfs.errors import NotPermitted, StorageFailed
from imgfs.execution.control import Connection


class Waiting:
    """A supervisor without a job. It ends when nobody holds the other end of its connection."""

    def __init__(self, mountpoint: str) -> None:
        """Start it, in a session of its own. Raises StorageFailed. `mountpoint` is for people who list processes."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = Connection(ours)
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "imgfs.execution.supervisor", str(theirs.fileno()), mountpoint],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                self.control.close()
                raise StorageFailed(f"a supervisor cannot be started: {error.strerror}") from None


def check_root() -> None:
    """Raise NotPermitted for an ordinary user."""
    if os.geteuid():
        raise NotPermitted("containers: are started by root only; there are no rootless ones")
