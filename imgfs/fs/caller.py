"""The process behind a request, and waiting on its behalf so that Ctrl-C and SIGKILL set it free at once.

pyfuse3 drops FUSE_INTERRUPT, and a process that waits in lookup, readlink, open or a direct read cannot die before the
daemon answers. So every wait of this room asks /proc each 100 ms whether the process has a signal to handle.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from imgfs.errors import Busy, Interrupted, Stopping
from imgfs.kernel.proc import read_of
from imgfs.metrics.histogram import Histogram

T = TypeVar("T")

POLL = 0.1
_MOUNTERS = (b"fusermount3", b"fuse-overlayfs")


WAITERS_MAX = 2000
"""Processes that may wait at once. Each holds one of the session's tasks; the rest must stay for who does not wait."""


class Waiters:
    """Everybody who waits. `ending` is set when the daemon ends: then every wait is answered."""

    def __init__(self, ending: trio.Event) -> None:
        self.ending = ending
        self.count = 0
        self.seconds = Histogram()
        """How long they waited, also those who left before the end."""

    @property
    def poll(self) -> float:
        """Seconds between two looks at a process: with thousands of them looking is a cost of its own."""
        return POLL + 0.15 * self.count / WAITERS_MAX


class Caller:
    """Who asks."""

    __slots__ = ("_may_leave", "_waiters", "pid", "uid")

    def __init__(self, pid: int, uid: int, waiters: Waiters, *, may_leave: bool = False) -> None:
        """`may_leave`: that it is gone is no reason to wait no more."""
        self._may_leave = may_leave
        self.pid = pid
        self.uid = uid
        self._waiters = waiters

    @property
    def is_daemon(self) -> bool:
        """Whether it is a thread of this very process, or a program it started, on its way to mount something."""
        return self.pid > 0 and (os.path.exists(f"/proc/self/task/{self.pid}") or _mounts_for_us(self.pid))

    @property
    def is_elsewhere(self) -> bool:
        """Whether the process sees other mounts than this daemon, as far as can be told."""
        try:
            return os.stat(f"/proc/{self.pid}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
        except OSError:
            return False

    def anonymous(self) -> Caller:
        """Nobody in particular: for reads of the kernel, which a process that waits through it can leave by itself."""
        return Caller(0, self.uid, self._waiters)

    def opener(self) -> Caller:
        """Whoever opened a file, for its reads, which do not tell who reads: he may have handed it on and be gone."""
        return Caller(self.pid, self.uid, self._waiters, may_leave=True)

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, or raise Interrupted as soon as the process has a signal to handle or the daemon ends.

        `work` is cancelled then, so it must leave shared fetches to their flights. Raises Busy where too many wait, and
        Stopping where the daemon was ending before: Python calls again and again what was interrupted, and would hold
        up the unmounting.
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
        """The first look comes after a while: what is done sooner, as nearly everything is, costs none."""
        ending = self._waiters.ending
        while not ending.is_set():
            with trio.move_on_after(self._waiters.poll):
                await ending.wait()
            if is_interrupted(self.pid, gone=not self._may_leave):
                break
        waiting.cancel()


def _mounts_for_us(pid: int) -> bool:
    """Whether it is a program that this process has mount an ordinary user's overlay, itself or through another one.

    By name too: as the first process of a container the daemon is a parent of everybody whose own is gone.
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

    `gone` is the answer for one that is not there any more. 0 stands for a process of another pid namespace, which
    cannot be asked.
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
