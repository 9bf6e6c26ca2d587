"""The FUSE session: mount, serve, unmount. pyfuse3 supports one session per process."""

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
from imgfs.fs.readiness import poll_before_sleeping
from imgfs.kernel.fuse import INIT_BUFFER, FuseMount, amend_init, open_fuse, set_read_ahead
from imgfs.kernel.mounts import mount_at, unmount, watch_mounts

MAX_TASKS = 2500
"""Requests in progress at once. A caller that waits for a registry holds one; this is well above WAITERS_MAX."""
MAX_BACKGROUND = 1500
"""Background reads of the kernel in progress at once, including reads of kernel views. A read that waits for a dead
registry keeps its slot: with 128 slots, 128 pages of one image stopped the cold reads of all others. The value is
below WAITERS_MAX, so that lookups and opens keep free slots.
"""
READ_AHEAD_KB = 1024
_UNMOUNT_PATIENCE = 10.0


class FuseSession:
    """The tree, mounted at `mountpoint` as `mount` says. Use it as a context manager; leaving the context unmounts."""

    def __init__(self, operations: Operations, mountpoint: str, mount: FuseMount) -> None:
        self._operations = operations
        self._mountpoint = mountpoint
        self._mount = mount
        self._device = -1
        self._library: socket.socket | None = None

    def __enter__(self) -> FuseSession:
        """Mount the tree. Raises NotFound, NotPermitted, Busy or Unsupported, with advice."""
        self._device = open_fuse(self._mountpoint, self._mount)
        return self

    def __exit__(self, *_: object) -> None:
        """Unmount the tree if it is still mounted, and free the session."""
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
        """Serve requests until `signalled` is set or another program unmounts the tree; unmount it then.

        `clear` first unmounts everything below it, or raises Busy.

        `ending` is set when the session ends; every waiting caller then gets an error. After a lazy unmount by another
        program, open files stay readable until they are closed. `ready` is called when the tree answers.
        """
        await self._greet()
        async with plain_nursery() as nursery:
            nursery.start_soon(_unmount_when, signalled, ending, self._mountpoint, clear)
            nursery.start_soon(_watch_mounts, ending, self._mountpoint)
            nursery.start_soon(_announce, self._mountpoint, ready)
            poll_before_sleeping()
            await pyfuse3.main(max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()

    async def _greet(self) -> None:
        """Exchange FUSE_INIT through a socket, so that the reply can be changed; then put the device in its place.

        kernel/fuse.py says why. The kernel sends its request as soon as the tree is mounted.
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
    # The thread is not joined if the start fails: no reply would come before the device is closed.
    await trio.to_thread.run_sync(os.stat, os.path.join(mountpoint, ".imgfs", "version"), abandon_on_cancel=True)
    if mount := mount_at(mountpoint):
        # Set after FUSE_INIT, because the kernel takes its default from the first reply of the session.
        set_read_ahead(mount.device, READ_AHEAD_KB)
    ready()


async def _watch_mounts(ending: trio.Event, mountpoint: str) -> None:
    """Set `ending` when another program unmounts the tree. Waiting requests would otherwise keep the session open."""
    with watch_mounts() as changes:
        while mount_at(mountpoint):
            await trio.lowlevel.wait_readable(changes)
            changes.poll(0)
    ending.set()


async def _unmount_when(
    signalled: trio.Event, ending: trio.Event, mountpoint: str, clear: Callable[[], Awaitable[None]]
) -> None:
    """Interrupt waiting callers, then unmount, which ends the session's loop. A tree that stays busy is detached."""
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
