"""Send a signal to a container: through its supervisor, or to the process itself if the supervisor was killed."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from imgfs.cli.containers.lookup import ContainerState, has_ended, record_of, state
from imgfs.cli.failure import Failure, from_os_error
from imgfs.cli.tree import Tree
from imgfs.errors import NotFound
from imgfs.execution.control import Connection


def send_signal(tree: Tree, id: str, number: int, *, everybody: bool = False) -> None:
    """Send a signal to the first process of a container, or to all. Raises Failure if the container is not running."""
    found = state(tree, id)
    record = record_of(found)
    if has_ended(found) or record is None:
        raise Failure(f"container {id}: has ended; no process can receive a signal", errno.ESRCH)
    try:
        with Connection.open(Path(record, "control")) as supervisor:
            supervisor.ask({"do": "kill", "signal": number, "all": everybody})
    except NotFound:
        _send_directly(tree, id, found, number)


def _send_directly(tree: Tree, id: str, found: ContainerState, number: int) -> None:
    pid = found.get("pid")
    try:
        process = os.pidfd_open(pid) if pid is not None else None
    except ProcessLookupError:
        process = None
    if process is None:
        raise Failure(f"container {id}: has just ended", errno.ESRCH)
    try:
        # Read the pid again after pidfd_open: if it is unchanged, the pidfd is not that of a reused pid.
        if state(tree, id).get("pid") == pid:
            signal.pidfd_send_signal(process, number)
    except OSError as error:
        raise from_os_error(error, f"container {id}") from None
    finally:
        os.close(process)
