"""Notify the service manager (sd_notify(3)): the daemon is ready, alive, stopping, or why it did not start."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

import trio

from imgfs.errors import ImgfsError

_PATIENCE = 1.0
"""Seconds that a message may wait for room in the manager's socket."""
_TICKS = 3
"""Watchdog messages per watchdog interval."""
_log = logging.getLogger("imgfs.notify")


class Manager:
    """The service manager. If `address` is empty there is none, and no message is sent.

    `limit` is the watchdog interval in seconds; None if there is no watchdog. A message that cannot be delivered is
    logged and has no other effect.
    """

    def __init__(self, address: str = "", limit: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._limit = limit
        self._talking = trio.CapacityLimiter(1)

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Manager:
        """Return the manager that started this process.

        Removes the manager's variables from `environment`, so that no child process sends messages for the daemon.
        """
        address, limit = environment.pop("NOTIFY_SOCKET", ""), environment.pop("WATCHDOG_USEC", "")
        is_meant = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(limit) / 1e6 if is_meant and limit.isdecimal() and int(limit) else None)

    def failed(self, error: ImgfsError) -> None:
        """Report why the daemon does not run. Blocks for a second at most."""
        self._tell(f"STATUS={error.message}", f"ERRNO={error.errno}")

    async def attend(self, answering: trio.Event, ending: trio.Event, where: str) -> None:
        """Send READY once `answering` is set, STOPPING once `ending` is set, and watchdog messages meanwhile.

        `where` is the mountpoint for the status text. The event loop that serves the tree sends the watchdog messages,
        so they stop if the loop hangs. Returns at once if there is no manager; with a watchdog it runs until it is
        cancelled.
        """
        if not self._address:
            return
        async with trio.open_nursery() as nursery:
            if self._limit is not None:
                nursery.start_soon(self._beat, self._limit / _TICKS)
            await answering.wait()
            await self._told("READY=1", f"STATUS=Serving {where}")
            await ending.wait()
            await self._told("STOPPING=1", f"STATUS=Unmounting {where}")

    async def _beat(self, seconds: float) -> None:
        while True:
            await self._told("WATCHDOG=1")
            await trio.sleep(seconds)

    async def _told(self, *facts: str) -> None:
        await trio.to_thread.run_sync(self._tell, *facts, limiter=self._talking, abandon_on_cancel=True)

    def _tell(self, *facts: str) -> None:
        if not self._address:
            return
        message = "\n".join(" ".join(fact.splitlines()) for fact in facts)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(_PATIENCE)
                manager.sendto(message.encode(errors="backslashreplace"), self._address)
        except OSError as error:
            _log.warning("the service manager is not told", extra={"fact": facts[0], "reason": str(error)})
