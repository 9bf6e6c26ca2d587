"""The calling process of a FUSE request, and waits on its behalf that end as soon as it gets a signal.

pyfuse3 drops FUSE_INTERRUPT, and a process that waits in lookup, readlink, open or a direct read cannot die before the
daemon answers. Therefore every wait of this room checks /proc each 100 ms for a pending signal of the caller.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from imgfs.errors import Busy, Interrupted, Stopping
from imgfs.kernel.namespaces import mount_namespace
from imgfs.kernel.proc import read_of
from imgfs.metrics.histogram import Histogram

T = TypeVar("T")

POLL = 0.1
_MOUNTERS = (b"fusermount3", b"fuse-overlayfs")


WAITERS_MAX = 2000
"""Callers that may wait at once. Each holds one task of the session; the other tasks stay free for short requests."""


class Waiters:
    """All waiting callers. `ending` is set when the daemon stops; every wait then returns an error."""

    def __init__(self, ending: trio.Event) -> None:
        self.ending = ending
        self.count = 0
        self.seconds = Histogram()
        """The duration of all waits, including interrupted ones."""

    @property
    def poll(self) -> float:
        """Seconds between two checks of a caller.

        The interval grows with the number of waiters, as each check costs time.
        """
        return POLL + 0.15 * self.count / WAITERS_MAX


class Caller:
    """The process that sent a request."""

    __slots__ = ("_may_leave", "_waiters", "pid", "uid")

    def __init__(self, pid: int, uid: int, waiters: Waiters, *, may_leave: bool = False) -> None:
        """With `may_leave`, the wait goes on after the process has ended."""
        self._may_leave = may_leave
        self.pid = pid
        self.uid = uid
        self._waiters = waiters

    @property
    def is_daemon(self) -> bool:
        """Whether the caller is a thread of this daemon, or a mount helper that the daemon started."""
        return self.pid > 0 and (os.path.exists(f"/proc/self/task/{self.pid}") or _mounts_for_us(self.pid))

    @property
    def is_elsewhere(self) -> bool:
        """Whether the process is in another mount namespace than the daemon; False if the process has ended."""
        return mount_namespace(self.pid) not in (None, mount_namespace())

    def anonymous(self) -> Caller:
        """Return a caller without a process, for reads by the kernel itself.

        A process waiting for those can be killed.
        """
        return Caller(0, self.uid, self._waiters)

    def opener(self) -> Caller:
        """Return the caller for reads of a file that this process opened.

        A read does not tell which process reads. The opener may have passed the file on and ended.
        """
        return Caller(self.pid, self.uid, self._waiters, may_leave=True)

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work`. Raises Interrupted as soon as the caller has a signal to handle or the daemon stops.

        `work` is cancelled then, so shared fetches in it must be flights. Raises Busy if too many callers wait, and
        Stopping if the daemon was already stopping: Python retries interrupted calls (EINTR), which would delay the
        unmount.
        """
        if self._waiters.count >= WAITERS_MAX:
            raise Busy(f"{WAITERS_MAX} processes wait for registries already; try again later")
        self._waiters.count += 1
        began = trio.current_time()
        try:
            return await self._wait(work)
        finally:
            self._waiters.count -= 1
            self._waiters.seconds.observe(trio.current_time() - began)

    async def _wait(self, work: Callable[[], Awaitable[T]]) -> T:
        results: list[T] = []
        failures: list[Exception] = []
        is_late = self._waiters.ending.is_set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                results.append(await work())
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery's group
                failures.append(error)
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        if not results and is_late:
            raise Stopping("the daemon is stopping; mount again")
        if not results:
            raise Interrupted(f"process {self.pid} was interrupted while it waited")
        return results[0]

    async def _watch(self, waiting: trio.CancelScope) -> None:
        """Cancel the wait if the caller is interrupted.

        The first check comes after one interval, so short waits cost none.
        """
        ending = self._waiters.ending
        while not ending.is_set():
            with trio.move_on_after(self._waiters.poll):
                await ending.wait()
            if is_interrupted(self.pid, gone=not self._may_leave):
                break
        waiting.cancel()


def _mounts_for_us(pid: int) -> bool:
    """Whether the process is a mount helper that this daemon started, directly or through another helper.

    The name is checked too: as PID 1 of a container, the daemon is the parent of all orphans.
    """
    for _ in range(len(_MOUNTERS)):
        try:
            status = read_of(pid, "status")
        except OSError:
            return False
        fields = dict(line.split(b":\t", 1) for line in status.splitlines() if b":\t" in line)
        if fields.get(b"Name") not in _MOUNTERS:
            return False
        pid = int(fields.get(b"PPid", b"0"))
        if pid == os.getpid():
            return True
    return False


def is_interrupted(pid: int, *, gone: bool = True) -> bool:
    """Whether the thread `pid` has a pending signal that is neither blocked nor ignored (proc(5)).

    Return `gone` if the thread does not exist. `pid` 0 is a process of another PID namespace, which cannot be checked.
    """
    if not pid:
        return False
    try:
        status = read_of(pid, "status")
    except OSError:
        return gone
    masks: dict[bytes, int] = {}
    for line in status.splitlines():
        key, _, value = line.partition(b":\t")
        if key in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn"):
            masks[key] = int(value, 16)
    pending = masks.get(b"SigPnd", 0) | masks.get(b"ShdPnd", 0)
    return bool(pending & ~masks.get(b"SigBlk", 0) & ~masks.get(b"SigIgn", 0))
