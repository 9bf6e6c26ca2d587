"""`imgfs mount` and `imgfs umount`."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import click

from imgfs.cli.failure import Failure, from_error
from imgfs.config import DEFAULT_MOUNTPOINT, default_state, load_config
from imgfs.errors import ImgfsError

_END_PATIENCE = 20

mountpoint_argument = click.argument(
    "mountpoint",
    type=click.Path(path_type=Path),
    default=DEFAULT_MOUNTPOINT,
    envvar="IMGFS_MOUNTPOINT",
)


@click.command()
@mountpoint_argument
@click.option("-f", "--foreground", is_flag=True, help="Stay in front and log to stderr, for systemd and debugging.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Where content is kept. Default: $STATE_DIRECTORY, else /var/lib/imgfs-state (root) or the XDG state home.",
)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Default: imgfs.toml in the state directory."
)
def mount(mountpoint: Path, foreground: bool, state: Path | None, config_path: Path | None) -> None:
    """Mount the tree at MOUNTPOINT (default /var/lib/imgfs).

    Returns when the mount answers and runs on in the background; -f stays in front. State survives unmounting.
    """
    from imgfs.daemon import Mounting

    try:
        chosen = (state or default_state()).absolute()
        mounting = Mounting(Path(os.path.abspath(mountpoint)), chosen, load_config(config_path, chosen), foreground)
        if foreground:
            _serve(mounting, lambda: None)
        else:
            _serve_behind(mounting)
    except ImgfsError as error:
        raise from_error(error) from None


@click.command()
@mountpoint_argument
@click.option(
    "-l", "--lazy", is_flag=True, help="Take it from the tree at once, and for good when its last user is gone."
)
def umount(mountpoint: Path, lazy: bool) -> None:
    """Unmount the tree at MOUNTPOINT and wait until its daemon has ended. Works without a daemon too."""
    from imgfs.kernel.mounts import is_dead, unmount

    path = os.path.abspath(mountpoint)
    pid = None if is_dead(path) else _daemon_of(path)
    try:
        unmount(path, detach=lazy or is_dead(path))
    except ImgfsError as error:
        raise from_error(error) from None
    if pid is not None and not lazy:
        _wait_for_end(pid)


def _serve(mounting: object, ready: Callable[[], None]) -> None:
    from imgfs.daemon import Mounting, run

    assert isinstance(mounting, Mounting)
    run(mounting, ready)


def _serve_behind(mounting: object) -> None:
    """Fork before any thread or event loop exists; the child tells over a pipe that it answers, or why not."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading, "rb") as told:
            answer = told.read()
        if answer != b"ready":
            raise _told(answer)
        return
    os.close(reading)
    os.setsid()
    os._exit(_child(mounting, writing))


def _child(mounting: object, writing: int) -> int:
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


def _told(answer: bytes) -> Failure:
    if not answer:
        return Failure("mount: the daemon ended before the mount answered; `imgfs mount -f` shows why", 0)
    number, message = json.loads(answer)
    return Failure(message, number)


def _daemon_of(path: str) -> int | None:
    """The daemon's pid, as the mount tells it; None where it does not answer as imgfs does."""
    try:
        with open(os.path.join(path, ".imgfs", "state.json"), "rb") as file:
            return int(json.load(file)["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _wait_for_end(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([process], [], [], _END_PATIENCE)[0]:
            raise Failure(f"umount: daemon {pid} is still ending after {_END_PATIENCE} s; see its log", signal.SIGALRM)
    finally:
        os.close(process)
