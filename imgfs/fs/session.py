"""The FUSE session: mount, serve until somebody ends it, unmount. One a process, as pyfuse3 has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pyfuse3
import trio

from imgfs.aio.gather import plain_nursery
from imgfs.errors import ImgfsError
from imgfs.fs.operations import Operations
from imgfs.fs.readiness import ask_before_sleeping
from imgfs.kernel.fuse import INIT_BUFFER, FuseMount, amend_init, open_fuse, set_read_ahead
from imgfs.kernel.mounts import mount_at, unmount, watch_mounts

MAX_TASKS = 2500
"""Requests in work at once. A reader that waits for a registry holds one, so this is well above WAITERS_MAX."""
MAX_BACKGROUND = 1500
"""Reads that the kernel has under way at once, those of kernel views among them. What waits for a dead registry keeps
its place: with the 128 that were enough for speed, 128 pages of one image stopped the cold reads of all others. Below
WAITERS_MAX, so that places are left for who looks up and opens."""
READ_AHEAD_KB = 1024
_UNMOUNT_PATIENCE = 10.0


class Session:
    """A tree that is mounted at `mountpoint`, as `mount` says. Use as a context; leaving it unmounts."""

    def __init__(self, operations: Operations, mountpoint: str, mount: FuseMount) -> None:
        self._operations = operations
        self._mountpoint = mountpoint
        self._mount = mount
        self._device = -1
        self._library: socket.socket | None = None

    def __enter__(self) -> Session:
        """Mount. Raises NotFound, NotPermitted, Busy or Unsupported, saying what to do."""
        self._device = open_fuse(self._mountpoint, self._mount)
        return self

    def __exit__(self, *_: object) -> None:
        """Free what the session holds; the tree is unmounted already or is now."""
        if self._library is not None:
            pyfuse3.close(unmount=False)
            self._library.detach()  # libfuse has closed it
        if self._device >= 0:
            os.close(self._device)
        if mount_at(self._mountpoint):
            with suppress(ImgfsError):
                unmount(self._mountpoint, detach=True)

    async def serve(
        self,
        signalled: trio.Event,
        ending: trio.Event,
        ready: Callable[[], None],
        clear: Callable[[], Awaitable[None]],
    ) -> None:
        """Answer requests until `signalled` is set or the tree is unmounted from outside; then it is unmounted.

        `clear` takes away what is mounted below it first, or raises Busy.

        `ending` is set when either happens: whoever waits gets an answer then. After a lazy unmount from outside,
        files that are open stay readable until they are closed. `ready` is called when the tree answers.
        """
        await self._greet()
        async with plain_nursery() as nursery:
            nursery.start_soon(_unmount_when, signalled, ending, self._mountpoint, clear)
            nursery.start_soon(_watch_mounts, ending, self._mountpoint)
            nursery.start_soon(_announce, self._mountpoint, ready)
            ask_before_sleeping()
            await pyfuse3.main(max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()

    async def _greet(self) -> None:
        """Exchange FUSE_INIT through a socket, so that the answer can be amended; then put the device in its place.

        See kernel/fuse.py for why. The kernel's request is there as soon as the mount is.
        """
        kernel, self._library = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with kernel:
            pyfuse3.init(self._operations, f"/dev/fd/{self._library.fileno()}", {"fsname=imgfs"})
            request = os.read(self._device, INIT_BUFFER)
            kernel.send(request)
            async with plain_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                await trio.lowlevel.wait_readable(kernel)
                answer = kernel.recv(INIT_BUFFER)
                nursery.cancel_scope.cancel()
            os.write(self._device, amend_init(request, answer, max_background=MAX_BACKGROUND))
            os.dup2(self._device, self._library.fileno(), inheritable=False)
        os.close(self._device)
        self._device = -1


async def _announce(mountpoint: str, ready: Callable[[], None]) -> None:
    # Left to itself when the start fails: nobody would answer it before the device is closed.
    await trio.to_thread.run_sync(os.stat, os.path.join(mountpoint, ".imgfs", "version"), abandon_on_cancel=True)
    if mount := mount_at(mountpoint):
        # Only now: the kernel takes its default from the first answer of the session.
        set_read_ahead(mount.device, READ_AHEAD_KB)
    ready()


async def _watch_mounts(ending: trio.Event, mountpoint: str) -> None:
    """Notice that somebody has unmounted the tree: requests that wait would else keep the session from its end."""
    with watch_mounts() as changes:
        while mount_at(mountpoint):
            await trio.lowlevel.wait_readable(changes)
            changes.poll(0)
    ending.set()


async def _unmount_when(
    signalled: trio.Event, ending: trio.Event, mountpoint: str, clear: Callable[[], Awaitable[None]]
) -> None:
    """Answer who waits, then unmount, which ends the session's loop. What is still busy after a while is detached."""
    await signalled.wait()
    ending.set()
    deadline = trio.current_time() + _UNMOUNT_PATIENCE
    while mount_at(mountpoint) and trio.current_time() < deadline:
        with suppress(ImgfsError):
            await clear()
            if await _try_unmount(mountpoint, detach=False):
                break
        await trio.sleep(0.1)
    if mount_at(mountpoint):
        await _try_unmount(mountpoint, detach=True)
    pyfuse3.terminate()


async def _try_unmount(mountpoint: str, *, detach: bool) -> bool:
    with suppress(ImgfsError):
        await trio.to_thread.run_sync(lambda: unmount(mountpoint, detach=detach))
        return True
    return False
