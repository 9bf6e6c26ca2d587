"""Bind mounts: the same directory at a second place, with restrictions (mount_setattr(2), Linux 5.12)."""

from __future__ import annotations

from imgfs.kernel.mountapi import NODEV, NOSUID, RDONLY, clone


def bind(source: str, target: str, *, trusted: bool) -> None:
    """Show the directory `source` at `target` too, writable if it is.

    Setuid bits and device nodes work there only if `trusted`, whether or not they work at `source`. Blocks and raises
    as bind_read_only.
    """
    with clone(source) as mount:
        if trusted:
            mount.loosen(NOSUID | NODEV)
        else:
            mount.restrict(NOSUID | NODEV)
        mount.attach(target)


def bind_read_only(source: str, target: str, *, trusted: bool) -> None:
    """Show the directory `source` read-only at `target` too, which may be `source` itself.

    It is read-only from the first moment on. Unless `trusted`, setuid bits and device nodes do not work. Mounts below
    `source` are not shown. Blocks while both paths are walked: call it in a thread. Raises NotFound, NotPermitted,
    Unsupported or Busy.
    """
    with clone(source) as mount:
        mount.restrict(RDONLY if trusted else RDONLY | NOSUID | NODEV)
        mount.attach(target)
