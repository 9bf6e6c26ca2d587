"""Start a daemon in the foreground or in the background."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

from imgfs.assembly.mounting import Mounting
from imgfs.cli.failure import Failure
from imgfs.cli.service.mount_options import MountOptions
from imgfs.cli.service.serving_options import state_of
from imgfs.config import load_settings
from imgfs.daemon import run
from imgfs.errors import ImgfsError


def mounting_of(mountpoint: Path, options: MountOptions, *, foreground: bool) -> Mounting:
    """Return the mount that `options` describe. Raises Invalid and NotPermitted for a wrong configuration."""
    state = state_of(options)
    settings = load_settings(options.config, state, os.environ, options.given)
    # The real path: the kernel's table of mounts contains no other spelling.
    path = Path(os.path.realpath(mountpoint))
    return Mounting(path, state, settings, foreground, options.nosuid, options.is_read_only)


def serve(mounting: Mounting) -> None:
    """Serve in the foreground until the daemon ends; see daemon.run."""
    run(mounting, lambda: None)


def serve_behind(mounting: Mounting) -> None:
    """Start a daemon in the background and return when the tree answers. Raises Failure with the daemon's reason.

    The fork happens before any thread or event loop exists. The child reports over a pipe that the tree answers, or
    why it does not.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading, "rb") as told:
            answer = told.read()
        if answer != b"ready":
            raise _told(answer, more(mounting.state))
        return
    os.setsid()
    _keep_only(writing)
    os._exit(_child(mounting, writing))


def more(state: Path) -> str:
    """Return where to find details about a failed start."""
    return f"{state / 'log'}, or run `imgfs mount -f` to log to stderr"


def _keep_only(descriptor: int) -> None:
    """Close all other inherited descriptors: the daemon must not hold another program's lock, pipe or file."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _child(mounting: Mounting, writing: int) -> int:
    os.chdir("/")  # otherwise the filesystem of the caller's working directory stays busy
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def ready() -> None:
        os.dup2(null, 2)
        os.write(writing, b"ready")
        os.close(writing)

    try:
        run(mounting, ready)
    except ImgfsError as error:
        os.write(writing, json.dumps([error.errno, error.message]).encode())
        return 1
    return 0


def _told(answer: bytes, where: str) -> Failure:
    if not answer:
        return Failure("mount: the daemon ended before the tree answered", errno.EIO, where)
    number, message = json.loads(answer)
    return Failure(message, number, where)
