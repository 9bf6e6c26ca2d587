"""Having a command done by the server: all is loaded there, so it begins at once. What is seen of it is the same.

It is done in a child of the starter that has this process's descriptors, environment, limits and cgroups. Signals are
passed on to it; it is killed when this process is; and as it ends, so does this one.

Of the standard library only what costs next to nothing to load is used until the request is out.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SO_PEERCRED, SOCK_SEQPACKET, SOL_SOCKET, socket

from imgfs.forkserver.request import PATIENCE, SOCKET, TAKEN, ForkRequest
from imgfs.mountpoint import DEFAULT_MOUNTPOINT, VARIABLE

_OPTION = "--mountpoint"
_STREAMS = 3
_CREDENTIALS = 12
"""Bytes of a struct ucred: pid, uid, gid."""
_INT, _CONTROL = 4, 64
"""Bytes of a descriptor in a message, and enough for a message with one."""


def run_on_fork_server(words: list[str]) -> int | None:
    """Have the command line `words` done; its exit code. None where it has to be done here, and nothing was done."""
    if os.geteuid():
        return None
    server = socket(AF_UNIX, SOCK_SEQPACKET)
    ours = -1
    try:
        # A low number is that of a stream which the shell closed.
        if server.fileno() < _STREAMS:
            return None
        life, ours = os.pipe()
        try:
            is_sent = _send(server, words, life)
        finally:
            os.close(life)
        if not is_sent:
            return None
        from imgfs.forkserver.foreground import run_in_foreground  # loaded while the other side begins

        process = _taken(server)
        return None if process is None else run_in_foreground(server, process)
    except OSError:
        return None
    finally:
        server.close()
        if ours >= 0:
            os.close(ours)


def _send(server: socket, words: list[str], life: int) -> bool:
    """Whether the starter of this mount, which is root's, has the request. Raises OSError."""
    server.settimeout(PATIENCE)
    _connect(server, _mountpoint(words))
    if _user_of(server):
        return False
    file = ForkRequest.of_this_process(words).file()
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        files = b"".join(one.to_bytes(_INT, sys.byteorder) for one in (*range(_STREAMS), directory, life, file))
        server.sendmsg([SOCKET.encode()], [(SOL_SOCKET, SCM_RIGHTS, files)])
    finally:
        os.close(directory)
        os.close(file)
    return True


def _taken(server: socket) -> int | None:
    """A pidfd of whoever is about to do it; None where nobody is. Raises OSError."""
    said, control, _, _ = server.recvmsg(len(TAKEN), _CONTROL)
    if said != TAKEN or not control:
        return None
    return int.from_bytes(control[0][2][:_INT], sys.byteorder)


def _connect(server: socket, mountpoint: str) -> None:
    directory = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY)
    try:
        server.connect(f"/proc/self/fd/{directory}/{SOCKET}")  # whatever the mountpoint's length: sun_path holds 107
    finally:
        os.close(directory)


def _user_of(server: socket) -> int:
    credentials = server.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def _mountpoint(words: list[str]) -> str:
    """Where the tree is likely to be. Whose starter is asked decides nothing but how fast it is done."""
    for number, word in enumerate(words[:-1]):
        if word == _OPTION:
            return words[number + 1]
        if word.startswith(f"{_OPTION}="):
            return word.partition("=")[2]
    return os.environ.get(VARIABLE) or DEFAULT_MOUNTPOINT
