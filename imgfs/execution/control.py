"""The protocol between commands and a supervisor: one JSON object per message over SOCK_SEQPACKET.

Requests are {"do": "kill", "signal": n, "all": bool}, {"do": "resize", "rows": n, "columns": n}, and {"do": "wait"},
which the supervisor answers with the status when the container ends. The process that starts a container may send
{"do": "cancel"} before it has an answer. Answers are {"ok": true, ...} or {"error": ..., "errno": n}.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from imgfs.errors import ImgfsError, Malformed, NotFound

MESSAGE_MAX = 1 << 16
Json = dict[str, Any]
_BACKLOG = 64
_CREDENTIALS = struct.Struct("3i")
"""A struct ucred: pid, uid, gid."""


class Refused(ImgfsError):
    """The error that the peer answered: its message and errno, and an exit code if the command was at fault."""

    def __init__(self, message: str, errno: int, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.exit_code = exit_code


def listen_at(path: Path) -> socket.socket:
    """Listen at `path` for Connection.open, for this user only. Accepting does not block. Raises OSError.

    An existing file at `path` is taken for the socket of a killed process and removed.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        with open_directory(path.parent) as directory:
            listener.bind(socket_path(directory, path.name))
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_of(end: socket.socket) -> tuple[int, int]:
    """Return the process that created the other end, and its user (SO_PEERCRED). Raises OSError."""
    pid, user, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, user


class Connection:
    """One end of a control connection. Calls block. Use it as a context manager."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def open(cls, path: Path) -> Connection:
        """Connect to the socket at `path`. Raises NotFound if no process listens there."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with open_directory(path.parent) as directory:
                end.connect(socket_path(directory, path.name))
        except OSError:
            end.close()
            raise NotFound(f"container {path.parent.name}: has no supervisor; it is not running") from None
        return cls(end)

    def fileno(self) -> int:
        """Return the descriptor, to wait for messages."""
        return self._end.fileno()

    def peer(self) -> int:
        """Return the process that created the other end. Raises OSError."""
        return peer_of(self._end)[0]

    def send(self, message: Json) -> None:
        """Send one message. Raises OSError."""
        self._end.send(json.dumps(message).encode())

    def receive(self) -> Json | None:
        """Return the next message, or None if the peer has closed. Raises Malformed, OSError."""
        try:
            data = self._end.recv(MESSAGE_MAX)
        except ConnectionResetError:
            # The peer closed with unread messages in its queue. Its own last message can still be received.
            data = self._end.recv(MESSAGE_MAX)
        if not data:
            return None
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise Malformed("control: a message is not a JSON object")
        return cast("Json", message)

    def send_files(self, data: bytes, files: list[int]) -> None:
        """Send a message with open files. They stay open here, too. Raises OSError."""
        socket.send_fds(self._end, [data], files)

    def receive_files(self, most: int) -> tuple[bytes, list[int]]:
        """Return the next message and its files, which are close-on-exec; an empty message if the peer has closed."""
        data, files, _, _ = socket.recv_fds(self._end, MESSAGE_MAX, most, socket.MSG_CMSG_CLOEXEC)
        return data, files

    def answer(self) -> Json:
        """Return the next message. Raises Refused for an error message, and NotFound if the peer has closed."""
        message = self.receive()
        if message is None:
            raise NotFound("the supervisor of the container has exited; `imgfs ps -a` shows the container's state")
        if "error" in message:
            raise Refused(str(message["error"]), int(message.get("errno", errno.EIO)), message.get("exit_code"))
        return message

    def ask(self, message: Json) -> Json:
        """Send one message and return its answer. Raises the errors of `send` and `answer`."""
        self.send(message)
        return self.answer()

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def open_directory(directory: str | Path) -> Generator[int]:
    """Open a directory as a path only (O_PATH), which does not read it. Raises OSError.

    Paths below the descriptor are short, and the directory cannot be swapped for another one.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def close_all_but(descriptor: int) -> None:
    """Close all descriptors except `descriptor` and the three streams."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, open_files_max())


def open_files_max() -> int:
    """Return the hard limit of open files of this process and its children."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def socket_path(directory: int, name: str) -> str:
    """Return a short path of a socket in an open directory, valid in all processes: sun_path holds 107 bytes."""
    return f"/proc/{os.getpid()}/fd/{directory}/{name}"
