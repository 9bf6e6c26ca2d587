"""Run a command on the fork server, where all modules are loaded, so that the command starts at once.

A child of the fork server runs the command with the descriptors, environment, limits and cgroups of this process. This
process forwards signals to the child and exits with the child's exit code. The kernel kills the child when this process
dies.

Until the request is sent, this module imports only modules that load in next to no time.
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
"""Size of a struct ucred in bytes: pid, uid, gid."""
_INT, _CONTROL = 4, 64
"""Bytes of one descriptor in a message, and a buffer size for a message with one descriptor."""


def run_on_fork_server(words: list[str]) -> int | None:
    """Run the command line `words` on the fork server and return its exit code.

    Return None if nothing was done; the caller of this function then runs the command itself.
    """
    if os.geteuid():
        return None
    server = socket(AF_UNIX, SOCK_SEQPACKET)
    lifeline = -1
    try:
        # A low descriptor number means that the shell closed one of the three streams.
        if server.fileno() < _STREAMS:
            return None
        life, lifeline = os.pipe()
        try:
            is_sent = _send(server, words, life)
        finally:
            os.close(life)
        if not is_sent:
            return None
        from imgfs.forkserver.foreground import run_in_foreground  # loaded while the fork server starts the command

        process = _accepted(server)
        return None if process is None else run_in_foreground(server, process)
    except OSError:
        return None
    finally:
        server.close()
        if lifeline >= 0:
            os.close(lifeline)


def _send(server: socket, words: list[str], life: int) -> bool:
    """Send the request to the fork server of this mount. Return False unless that runs as root. Raises OSError."""
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


def _accepted(server: socket) -> int | None:
    """Return a pidfd of the child that accepted the request, or None if no child accepted it. Raises OSError."""
    answer, control, _, _ = server.recvmsg(len(TAKEN), _CONTROL)
    if answer != TAKEN or not control:
        return None
    return int.from_bytes(control[0][2][:_INT], sys.byteorder)


def _connect(server: socket, mountpoint: str) -> None:
    directory = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY)
    try:
        server.connect(f"/proc/self/fd/{directory}/{SOCKET}")  # short: sun_path holds 107 bytes
    finally:
        os.close(directory)


def _user_of(server: socket) -> int:
    credentials = server.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def _mountpoint(words: list[str]) -> str:
    """Return the likely mountpoint. A wrong guess costs only the speed of the fork server."""
    for number, word in enumerate(words[:-1]):
        if word == _OPTION:
            return words[number + 1]
        if word.startswith(f"{_OPTION}="):
            return word.partition("=")[2]
    return os.environ.get(VARIABLE) or DEFAULT_MOUNTPOINT
