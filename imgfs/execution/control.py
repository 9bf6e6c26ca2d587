"""Talking to a supervisor: one JSON object a message, over a socket that keeps messages apart (SOCK_SEQPACKET).

{"do": "kill", "signal": n, "all": bool}, {"do": "resize", "rows": n, "columns": n}, and {"do": "wait"}, which is
answered at the end with the status. Whoever starts a container may say {"do": "cancel"} before he is answered.
Answers are {"ok": true, ...} or {"error": ..., "errno": n}.
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
    """What the other side answered instead: its sentence and errno, and an exit code if the command was to blame."""

    def __init__(self, message: str, errno: int, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.exit_code = exit_code


def listening_at(path: Path) -> socket.socket:
    """A socket for Connection.open at `path`, of this user alone; accepting does not block. Raises OSError.

    What is there is taken for one that a killed process left.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        with opened(path.parent) as directory:
            listener.bind(address(directory, path.name))
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_of(end: socket.socket) -> tuple[int, int]:
    """The process that made the other end, and its user (SO_PEERCRED). Raises OSError."""
    pid, user, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, user


class Connection:
    """One end. Blocking; use as a context."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def open(cls, path: Path) -> Connection:
        """Connect to the socket at `path`. Raises NotFound where nobody listens."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with opened(path.parent) as directory:
                end.connect(address(directory, path.name))
        except OSError:
            end.close()
            raise NotFound(f"container {path.parent.name}: has no supervisor; it is not running") from None
        return cls(end)

    def fileno(self) -> int:
        """To wait for messages on."""
        return self._end.fileno()

    def peer(self) -> int:
        """The process that made the other end. Raises OSError."""
        return peer_of(self._end)[0]

    def send(self, message: Json) -> None:
        """Send one message. Raises OSError."""
        self._end.send(json.dumps(message).encode())

    def receive(self) -> Json | None:
        """The next message; None when the other side is gone. Raises Malformed, OSError."""
        try:
            data = self._end.recv(MESSAGE_MAX)
        except ConnectionResetError:
            # The other side left without reading all that it was told; its own last words lie behind that, once.
            data = self._end.recv(MESSAGE_MAX)
        if not data:
            return None
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise Malformed("control: a message that is no JSON object")
        return cast("Json", message)

    def send_files(self, data: bytes, files: list[int]) -> None:
        """Send a message with open files, which stay open here too. Raises OSError."""
        socket.send_fds(self._end, [data], files)

    def receive_files(self, most: int) -> tuple[bytes, list[int]]:
        """The next message with its files, which are closed on exec; no bytes when the other side is gone."""
        data, files, _, _ = socket.recv_fds(self._end, MESSAGE_MAX, most, socket.MSG_CMSG_CLOEXEC)
        return data, files

    def answer(self) -> Json:
        """The next message, which has to be there. Raises Refused for an error, NotFound where nobody is there."""
        message = self.receive()
        if message is None:
            raise NotFound("the supervisor of the container is gone; `imgfs ps -a` shows what became of it")
        if "error" in message:
            raise Refused(str(message["error"]), int(message.get("errno", errno.EIO)), message.get("exit_code"))
        return message

    def ask(self, message: Json) -> Json:
        """Send one message and return its answer. Raises as both."""
        self.send(message)
        return self.answer()

    def close(self) -> None:
        """Leave."""
        self._end.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def opened(directory: str | Path) -> Generator[int]:
    """A directory, by its path alone: nobody is asked what is in it. Raises OSError."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def keep_only(descriptor: int) -> None:
    """Close all that this process has open but `descriptor` and the three streams."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, open_files_max())


def open_files_max() -> int:
    """How many files this process and its children may have open at a time if they ask for it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def address(directory: int, name: str) -> str:
    """The path of a socket in an opened directory, for this process and others: sun_path holds 107 bytes."""
    return f"/proc/{os.getpid()}/fd/{directory}/{name}"
