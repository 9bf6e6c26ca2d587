"""Where answers that stall wait for a test to let them go on, and not for a time."""

from __future__ import annotations

import socket
import threading
from collections import deque


class Stall:
    """An answer that waits to go on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._event = threading.Event()

    @property
    def released(self) -> bool:
        """Whether it may go on."""
        return self._event.is_set()

    @property
    def abandoned(self) -> bool:
        """Whether the client has closed its connection (not known under TLS)."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except (BlockingIOError, ValueError):
            return False
        except OSError:
            return True

    def release(self) -> None:
        """Let it go on."""
        self._event.set()

    def wait(self) -> None:
        """Block until it is released."""
        self._event.wait()


class Valve:
    """Where stalled answers wait, each for itself, and where tests find them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._arrived: deque[Stall] = deque()
        self._held: deque[Stall] = deque()
        self._passes = 0
        self._open = False

    def hold(self, connection: socket.socket) -> bool:
        """Announce an arrival and wait for its release; False when everything ends."""
        stall = Stall(connection)
        with self._condition:
            self._arrived.append(stall)
            self._held.append(stall)
            if self._passes or self._open:
                self._passes -= not self._open
                stall.release()
            self._condition.notify_all()
        stall.wait()
        with self._condition:
            self._held.remove(stall)
            return not self._open

    def wait_arrival(self) -> Stall | None:
        """Block until an answer has stalled that no earlier call has returned; None when everything ends."""
        with self._condition:
            self._condition.wait_for(lambda: self._arrived or self._open)
            return None if self._open else self._arrived.popleft()

    def release(self, count: int = 1) -> None:
        """Let `count` answers go on: first those with a client, then abandoned ones, then those that stall next."""
        with self._condition:
            waiting = sorted((stall for stall in self._held if not stall.released), key=lambda stall: stall.abandoned)
            for stall in waiting[:count]:
                stall.release()
            self._passes += max(0, count - len(waiting))

    def open(self) -> None:
        """End every stall, for good."""
        with self._condition:
            self._open = True
            for stall in self._held:
                stall.release()
            self._condition.notify_all()
