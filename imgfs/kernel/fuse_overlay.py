"""Overlays for users who may not mount: the program fuse-overlayfs(1), which mounts through the setuid fusermount3.

The format of its upper differs from the kernel's: an opaque directory has the xattr `user.fuseoverlayfs.opaque`, and
all files belong to the user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from imgfs.errors import ImgfsError, Invalid, NotFound, NotPermitted, TimedOut, Unsupported, from_os

PROGRAM = "fuse-overlayfs"
_CHATTER = "unknown argument ignored"
"""A message that the program prints for every mount, also for successful ones."""
_PATIENCE = 20
"""Seconds to wait for the mount, which normally takes some milliseconds."""


def mount_fuse_overlay(lowers: Sequence[str], target: str, upper: Path | None, work: Path | None) -> None:
    """Mount `lowers`, the nearest first, under `upper` over the directory `target`; without `upper` it is read-only.

    A process of this user serves the mount until it is unmounted. fusermount3 walks to `target` as root, so a target in
    the user's own FUSE mount needs `allow_other` there; the user must be able to write to `target`. Setuid bits and
    device nodes never work. Blocks; call it in a thread. Raises Unsupported (no such program), Invalid, NotFound,
    NotPermitted or TimedOut; then nothing is mounted.
    """
    if not lowers or (upper is None) != (work is None):
        raise Invalid(f"{target}: an overlay needs a lower directory, and an upper and work directory together")
    command = [program(), "-o"]
    with ExitStack() as opened:
        # The paths go as descriptors, because a colon separates paths and the path of a chain has a colon.
        descriptors = [_open(path, opened) for path in (*lowers, upper, work) if path is not None]
        paths = [f"/proc/self/fd/{one}" for one in descriptors]
        options = [f"lowerdir={':'.join(paths[: len(lowers)])}"]
        if upper is not None:
            _check_upper(upper)
            options += [f"upperdir={paths[-2]}", f"workdir={paths[-1]}"]
        _run([*command, ",".join(options), os.path.abspath(target)], target, descriptors)


def program() -> str:
    """Return the path of fuse-overlayfs. Raises Unsupported if it, fusermount3 or /dev/fuse is missing."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise Unsupported(f"{PROGRAM}: is missing; install the package {PROGRAM}")
    if shutil.which("fusermount3") is None:
        raise Unsupported("fusermount3: is missing; install fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Unsupported("/dev/fuse: cannot be opened by this user; load the fuse module, or set its mode to 666")
    return found


def _open(path: str | Path, opened: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such directory to overlay") from None
    except OSError as error:
        raise from_os(error, str(path)) from None
    opened.callback(os.close, descriptor)
    return descriptor


def _run(command: list[str], target: str, descriptors: Sequence[int]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_PATIENCE,
            check=False,
            pass_fds=descriptors,
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{target}: {PROGRAM} did not mount within {_PATIENCE} s; is what it reads served?") from None
    except OSError as error:
        raise from_os(error, f"{target}: {PROGRAM} cannot be started") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not line.startswith(_CHATTER)]
        raise _refused(target, "; ".join(said) or f"exit status {done.returncode}")


def _refused(target: str, words: str) -> ImgfsError:
    if "permitted" in words or "denied" in words:
        return NotPermitted(f"{target}: {PROGRAM} is refused: {words}; the directory must be this user's and writable")
    if "No such file" in words:
        return NotFound(f"{target}: {PROGRAM} is refused: {words}")
    return Invalid(f"{target}: {PROGRAM} is refused: {words}")


def _check_upper(upper: Path) -> None:
    """Refuse a colon: the program resolves the path of the upper before it splits at colons, and has no escape."""
    real = os.path.realpath(upper)
    if ":" in real:
        raise Invalid(f"{real}: {PROGRAM} cannot write below a path with a colon; move the state directory")
