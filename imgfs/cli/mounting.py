"""`imgfs mount` and `imgfs umount`."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from imgfs.cli.failure import Failure, from_error
from imgfs.cli.options import Command, mountpoint_argument
from imgfs.errors import ImgfsError

_END_PATIENCE = 20


@click.command(cls=Command)
@mountpoint_argument
@click.option("-f", "--foreground", is_flag=True, help="Stay in front and log to stderr, for systemd and debugging.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    metavar="DIR",
    help="Where content is kept. Default: $STATE_DIRECTORY, else /var/lib/imgfs-state (root) or the XDG state home.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    metavar="FILE",
    help="Options of the daemon, in TOML. Default: imgfs.toml in the state directory; none is needed.",
)
@click.option(
    "--nosuid", is_flag=True, help="Turn setuid bits and device nodes of images off, also where only root gets in."
)
def mount(mountpoint: Path, foreground: bool, state: Path | None, config_path: Path | None, nosuid: bool) -> None:
    """Mount the tree and serve it in the background.

    MOUNTPOINT is $IMGFS_MOUNTPOINT by default, else /var/lib/imgfs; it is made if it is missing. Returns when the
    tree answers and its daemon runs on; -f stays in front. A mount whose daemon died is taken away first. All state
    survives unmounting. `cat MOUNTPOINT/.imgfs/config` shows the options in force.
    """
    from imgfs.assembly import Mounting
    from imgfs.config import default_state, load_config

    # One spelling of each, whatever links lead there: the table of mounts knows no other.
    chosen = Path(os.path.realpath(state or default_state()))
    try:
        config = load_config(config_path, chosen)
        mounting = Mounting(Path(os.path.realpath(mountpoint)), chosen, config, foreground, nosuid)
        if foreground:
            _serve(mounting, lambda: None)
        else:
            _serve_behind(mounting, chosen)
    except ImgfsError as error:
        raise from_error(error, _more(chosen)) from None


@click.command(cls=Command)
@mountpoint_argument
@click.option(
    "-l", "--lazy", is_flag=True, help="Take it from the tree at once, and for good when its last user is gone."
)
def umount(mountpoint: Path, lazy: bool) -> None:
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
    if pid is not None and not lazy:
        _take_views_away(path)
    unmount(path, detach=lazy or is_orphan)
    if pid is not None and not lazy:
        # A copy of the mount in another namespace keeps the connection alive, and would keep its daemon too.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _wait_for_end(pid)


def _more(state: Path) -> str:
    return f"{state / 'log'}, or let `imgfs mount -f` log to stderr"


def _serve(mounting: object, ready: Callable[[], None]) -> None:
    from imgfs.assembly import Mounting
    from imgfs.daemon import run

    assert isinstance(mounting, Mounting)
    run(mounting, ready)


def _serve_behind(mounting: object, state: Path) -> None:
    """Fork before any thread or event loop exists; the child tells over a pipe that it answers, or why not."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading, "rb") as told:
            answer = told.read()
        if answer != b"ready":
            raise _told(answer, _more(state))
        return
    os.setsid()
    _keep_only(writing)
    os._exit(_child(mounting, writing))


def _keep_only(descriptor: int) -> None:
    """Close what the shell left open besides: a daemon must hold nobody's lock, pipe or file."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _child(mounting: object, writing: int) -> int:
    os.chdir("/")  # or the filesystem it was started from stays busy
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def ready() -> None:
        os.dup2(null, 2)
        os.write(writing, b"ready")
        os.close(writing)

    try:
        _serve(mounting, ready)
    except ImgfsError as error:
        os.write(writing, json.dumps([error.errno, error.message]).encode())
        return 1
    return 0


def _told(answer: bytes, more: str) -> Failure:
    if not answer:
        return Failure("mount: the daemon ended before the tree answered", errno.EIO, more)
    number, message = json.loads(answer)
    return Failure(message, number, more)


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
