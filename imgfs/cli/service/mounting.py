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
"""Seconds that a daemon has to end."""
_BUSY_PATIENCE = 1.0
"""Seconds in which a tree that was left comes to rest."""


@click.command(cls=Command)
@mountpoint_argument
@click.option("-f", "--foreground", is_flag=True, help="Stay in front and log to stderr, for systemd and debugging.")
@state_option
@config_option
@click.option(
    "--nosuid", is_flag=True, help="Turn setuid bits and device nodes of images off, also where only root gets in."
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

    MOUNTPOINT is $IMGFS_MOUNTPOINT by default, else /var/lib/imgfs; it is made if it is missing. Returns when the
    tree answers and its daemon runs on; -f stays in front. A mount whose daemon died is taken away first. All state
    survives unmounting. `imgfs config show` tells the options in force, `imgfs config --help` which there are.
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
    "-l", "--lazy", is_flag=True, help="Take it from the tree at once, and for good when its last user is gone."
)
def umount(mountpoint: Path, *, lazy: bool) -> None:
    """Unmount the tree and wait until its daemon has ended.

    MOUNTPOINT is $IMGFS_MOUNTPOINT by default, else /var/lib/imgfs. Takes away what a dead daemon left, too. While
    somebody uses the tree it is busy (exit code 7).
    """
    from imgfs.kernel.mounts import is_dead, is_ours, mount_at, unmount

    path = os.path.realpath(mountpoint)
    if mount_at(path) and not is_ours(path):
        raise Failure(f"{path}: what is mounted there is no tree of imgfs; `umount {path}` takes it away", errno.EPERM)
    is_orphan = is_dead(path)
    pid = None if is_orphan else _daemon_of(path)
    if pid is None or lazy:
        unmount(path, detach=lazy or is_orphan)
        return
    _unmount(path)
    # A copy of the mount in another namespace keeps the connection alive, and would keep its daemon too.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    _wait_for_end(pid)


def _unmount(path: str) -> None:
    """Take the tree away, and before it what the daemon mounted below it. Raises Busy.

    Somebody who has just left may have had a view mounted that comes between the two: then once more.
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
    """The daemon's pid, as the mount tells it; None where it does not answer as imgfs does."""
    try:
        with open(os.path.join(path, ".imgfs", "state.json"), "rb") as file:
            return int(json.load(file)["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _take_views_away(path: str) -> None:
    """Ask the daemon to unmount what it mounted below the tree, which is busy as long as anything is."""
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
    """Take the views away ourselves: a tree mounted read-only takes no xattr either. Raises Busy."""
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
            raise Failure(f"umount: daemon {pid} is still ending after {_END_PATIENCE} s; see its log", errno.EBUSY)
    finally:
        os.close(process)
