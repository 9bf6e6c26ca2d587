"""`imgfs mount` and `imgfs umount`."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from imgfs.cli.failure import Failure, from_error
from imgfs.cli.options import Command, mountpoint_argument
from imgfs.cli.service.serving_options import asked_for, config_option, mount_options_option, state_of, state_option
from imgfs.errors import Busy, ImgfsError

_END_PATIENCE = 20
"""Seconds to wait until the daemon has ended."""
_BUSY_PATIENCE = 1.0
"""Seconds to retry while the tree is busy: a view may be mounted shortly after its last user left."""


@click.command(cls=Command)
@mountpoint_argument
@click.option(
    "-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr, for systemd and debugging."
)
@state_option
@config_option
@click.option(
    "--nosuid", is_flag=True, help="Ignore setuid bits and device nodes of images, even if only root has access."
)
@mount_options_option
def mount(
    mountpoint: Path,
    *,
    foreground: bool,
    state: Path | None,
    config_path: Path | None,
    nosuid: bool,
    options: tuple[str, ...],
) -> None:
    """Mount the tree and serve it in the background.

    MOUNTPOINT defaults to $IMGFS_MOUNTPOINT, else /var/lib/imgfs; it is created if it is missing. The command returns
    when the tree answers, and the daemon continues in the background; -f stays in the foreground. A stale mount of a
    dead daemon is removed first. All state survives unmounting. `imgfs config show` prints the options in force,
    `imgfs config --help` describes all options.
    """
    from imgfs.cli.service.starting import more, mounting_of, serve, serve_behind

    asked = asked_for(options, state, config_path)
    asked = replace(asked, nosuid=nosuid or asked.nosuid)
    chosen = state_of(asked)
    try:
        mounting = mounting_of(mountpoint, asked, foreground=foreground)
        if foreground:
            serve(mounting)
        else:
            serve_behind(mounting)
    except ImgfsError as error:
        raise from_error(error, more(chosen)) from None


@click.command(cls=Command)
@mountpoint_argument
@click.option(
    "-l", "--lazy", is_flag=True, help="Detach the mount at once, and end the daemon when the last user has left."
)
def umount(mountpoint: Path, *, lazy: bool) -> None:
    """Unmount the tree and wait until its daemon has ended.

    MOUNTPOINT defaults to $IMGFS_MOUNTPOINT, else /var/lib/imgfs. The command also removes the mounts of a dead daemon.
    It fails with exit code 7 while a process uses the tree.
    """
    from imgfs.kernel.mounts import is_dead, is_ours, mount_at, unmount

    path = os.path.realpath(mountpoint)
    if mount_at(path) and not is_ours(path):
        raise Failure(f"{path}: is not a mount of imgfs; `umount {path}` unmounts it", errno.EPERM)
    is_orphan = is_dead(path)
    pid = None if is_orphan else _daemon_of(path)
    if pid is None or lazy:
        unmount(path, detach=lazy or is_orphan)
        return
    _unmount(path)
    # A copy of the mount in another mount namespace would keep the FUSE connection, and so the daemon, alive.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    _wait_for_end(pid)


def _unmount(path: str) -> None:
    """Unmount the views below the tree, then the tree. Raises Busy.

    A request that just ended can mount a view between the two steps; the caller retries then.
    """
    from imgfs.kernel.mounts import unmount

    deadline = time.monotonic() + _BUSY_PATIENCE
    while True:
        _take_views_away(path)
        try:
            unmount(path)
            return
        except Busy:
            if time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_PATIENCE / 20)


def _daemon_of(path: str) -> int | None:
    """Return the daemon's pid from the mount, or None if the mount does not answer as imgfs does."""
    try:
        with open(os.path.join(path, ".imgfs", "state.json"), "rb") as file:
            return int(json.load(file)["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _take_views_away(path: str) -> None:
    """Ask the daemon to unmount the views below the tree. The tree is busy as long as a view is mounted."""
    try:
        os.setxattr(os.path.join(path, ".imgfs"), "user.imgfs.views", b"unmount")
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Failure(
                f"{path}: a view below it is in use; end the processes in it or use --lazy", errno.EBUSY
            ) from None
        if error.errno == errno.EROFS:
            _unmount_below(path)


def _unmount_below(path: str) -> None:
    """Unmount the views in this process, for a tree mounted read-only, which accepts no setxattr. Raises Busy."""
    from imgfs.kernel.mounts import mounts_below, unmount

    for below in mounts_below(path):
        unmount(below.mountpoint)


def _wait_for_end(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([process], [], [], _END_PATIENCE)[0]:
            raise Failure(f"umount: daemon {pid} has not ended after {_END_PATIENCE} s; see its log", errno.EBUSY)
    finally:
        os.close(process)
