"""The overlay of those who may not mount: the program fuse-overlayfs(1), which goes through the setuid fusermount3.

Its upper is not the kernel's: an opaque directory has the xattr `user.fuseoverlayfs.opaque`, and owners are the user's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from imgfs.errors import ImgfsError, Invalid, NotFound, NotPermitted, TimedOut, Unsupported, from_os

PROGRAM = "fuse-overlayfs"
_CHATTER = "unknown argument ignored"
"""What it says of every mount, also of those that succeed."""
_PATIENCE = 20
"""Seconds until the mount stands; it takes some milliseconds where nothing is wrong."""


def mount_fuse_overlay(lowers: Sequence[str], target: str, upper: Path | None, work: Path | None) -> None:
    """Mount `lowers`, the nearest first, under `upper` over the directory `target`; without `upper` it is read-only.

    A process of this user serves it until it is unmounted. fusermount3 walks to `target` with root's identity and asks
    that the user may write there: below the user's own FUSE mount that takes `allow_other` on the latter. Lowers may be
    in that mount as they are. Never setuid, never devices. Blocks: call it in a thread. Raises Unsupported (no such
    program), Invalid, NotFound, NotPermitted or TimedOut; then nothing is mounted.
    """
    if not lowers or (upper is None) != (work is None):
        raise Invalid(f"{target}: an overlay needs a lower directory, and an upper and work directory together")
    options = [f"lowerdir={':'.join(_escaped(lower) for lower in lowers)}"]
    if upper is not None and work is not None:
        options += [f"upperdir={_escaped(upper)}", f"workdir={_escaped(work)}"]
    _run([program(), "-o", ",".join(options), os.path.abspath(target)], target)


def program() -> str:
    """The path of fuse-overlayfs. Raises Unsupported where it, fusermount3 or /dev/fuse is missing."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise Unsupported(f"{PROGRAM}: is missing; install the package {PROGRAM}")
    if shutil.which("fusermount3") is None:
        raise Unsupported("fusermount3: is missing; install fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Unsupported("/dev/fuse: cannot be opened by this user; load the fuse module, or set its mode to 666")
    return found


def _run(command: list[str], target: str) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
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


def _escaped(path: str | Path) -> str:
    """The path as libfuse's options need it; there is no way to write a colon."""
    text = os.path.abspath(path)
    if ":" in text:
        raise Invalid(f"{text}: {PROGRAM} cannot take a path with a colon; move the directory")
    return text.replace("\\", "\\\\").replace(",", "\\,")
