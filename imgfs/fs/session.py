"""The FUSE session: mount, serve until somebody ends it, unmount. One a process, as pyfuse3 has it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

import pyfuse3
import trio

from imgfs.aio.gather import plain_nursery
from imgfs.errors import ImgfsError, NotFound, NotPermitted
from imgfs.fs.operations import Operations
from imgfs.kernel.mounts import mount_at, tune_fuse, unmount, watch_mounts

MAX_TASKS = 1000
"""Requests in work at once. A reader that waits for a registry holds one, so this is well above MAX_BACKGROUND."""
MAX_BACKGROUND = 128
READ_AHEAD_KB = 1024
_UNMOUNT_PATIENCE = 10.0


def mount_options(*, as_root: bool, is_private: bool) -> set[str]:
    """FUSE mount options.

    Behind a root-only mountpoint views behave as an unpacked directory does: setuid bits and device nodes work. As soon
    as anybody else gets in, they do not: any image can hold a setuid shell. For ordinary users fusermount3 sees to
    that, and lets others into their mounts only where /etc/fuse.conf says so.
    """
    options = {"default_permissions", "fsname=imgfs", "subtype=imgfs"}
    if as_root or not is_private:
        options.add("allow_other")
    if as_root:
        options |= {"suid", "dev"} if is_private else {"nosuid", "nodev"}
    return options


def open_session(operations: Operations, mountpoint: str, options: set[str]) -> None:
    """Mount. Raises NotFound or NotPermitted with what to do about it."""
    if not os.path.exists("/dev/fuse"):
        raise NotFound("/dev/fuse: is missing; load the fuse module or give the container the device")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise NotPermitted("/dev/fuse: no permission; `ls -l /dev/fuse` should show mode 0666")
    try:
        pyfuse3.init(operations, mountpoint, options)
    except RuntimeError as error:
        raise NotPermitted(f"{mountpoint}: could not be mounted ({error}); the lines above tell why") from None


async def serve(mountpoint: str, signalled: trio.Event, ending: trio.Event, ready: Callable[[], None]) -> None:
    """Answer requests until `signalled` is set or the tree is unmounted from outside; then it is unmounted.

    `ending` is set when either happens: whoever waits gets an answer then. After a lazy unmount from outside, files
    that are open stay readable until they are closed. `ready` is called when the tree answers.
    """
    async with plain_nursery() as nursery:
        nursery.start_soon(_unmount_when, signalled, ending, mountpoint)
        nursery.start_soon(_watch_mounts, ending, mountpoint)
        nursery.start_soon(_announce, mountpoint, ready)
        await pyfuse3.main(max_tasks=MAX_TASKS)
        nursery.cancel_scope.cancel()


def close_session() -> None:
    """Free what the session holds; the tree is unmounted already or is now."""
    pyfuse3.close(unmount=True)


async def _announce(mountpoint: str, ready: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(os.stat, os.path.join(mountpoint, ".imgfs", "version"))
    if mount := mount_at(mountpoint):
        # Only now: the kernel takes its defaults from the first answer of the session.
        tune_fuse(mount.device, read_ahead_kb=READ_AHEAD_KB, max_background=MAX_BACKGROUND)
    ready()


async def _watch_mounts(ending: trio.Event, mountpoint: str) -> None:
    """Notice that somebody has unmounted the tree: requests that wait would else keep the session from its end."""
    with watch_mounts() as changes:
        while mount_at(mountpoint):
            await trio.lowlevel.wait_readable(changes)
            changes.poll(0)
    ending.set()


async def _unmount_when(signalled: trio.Event, ending: trio.Event, mountpoint: str) -> None:
    """Answer who waits, then unmount, which ends the session's loop. What is still busy after a while is detached."""
    await signalled.wait()
    ending.set()
    deadline = trio.current_time() + _UNMOUNT_PATIENCE
    while mount_at(mountpoint) and trio.current_time() < deadline:
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
