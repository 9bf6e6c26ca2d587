"""Mounting overlayfs: a writable view of a chain of directories, or a read-only one (overlayfs.rst of the kernel).

The caller knows what the layers are, and makes sure that no upper is used twice: the kernel only warns in its log.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from imgfs.errors import Busy, ImgfsError, Invalid
from imgfs.kernel.mountapi import NODEV, NOSUID, RDONLY, Detached, FilesystemContext, clone, clone_mount

SOURCE = "imgfs"
"""Source of every overlay of imgfs in the table of mounts."""
GOING_SECONDS = 0.5
"""How long the kernel may take to release an unmounted overlay."""
MOST_LOWERS = 500
"""OVL_MAX_STACK of the kernel."""

_OPTIONS = {"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "nfs_export": "off", "xino": "auto"}
"""Layers come from images, so overlayfs must not follow redirects in their xattrs. Renaming a directory of a lower is
therefore EXDEV, as under every container engine, and `mv` copies; an OCI layer can express every upper. xino gives one
st_dev and stable inode numbers, unless a lower filesystem has no UUID (EROFS images need one)."""
_HINTS = {
    errno.EINVAL: "the kernel's log (dmesg) says why; the state directory must not lie on overlayfs itself",
    errno.ENODEV: "load the kernel's overlay module (modprobe overlay)",
    errno.ELOOP: "a directory is in two layers; give each once",
    errno.ESTALE: "the upper belongs to other layers",
}


def mount_overlay(
    lowers: Sequence[str | Detached], target: str, *, upper: Path | None, work: Path | None, trusted: bool
) -> None:
    """Mount `lowers`, the nearest first, with `upper` on top of them over the directory `target`.

    Without `upper` the mount is read-only; a single lower is then a read-only bind mount. `work` is an empty directory
    on the filesystem of `upper`. Unless `trusted`, setuid bits and device nodes do not work. A lower is a path, or a
    detached mount (Linux 6.15), which the caller closes. The call walks the paths of the lowers and of `target`, which
    may lead through the daemon's own tree, so call it in a thread. Raises NotFound, NotPermitted, Unsupported or
    Invalid; then nothing is mounted.
    """
    with detached_overlay(lowers, upper=upper, work=work, trusted=trusted, subject=target) as mount:
        mount.attach(target)


def detached_overlay(
    lowers: Sequence[str | Detached], *, upper: Path | None, work: Path | None, trusted: bool, subject: str = "overlay"
) -> Detached:
    """Make the same mount detached. Errors name `subject`. Blocks and raises as mount_overlay."""
    if not 0 < len(lowers) <= MOST_LOWERS:
        raise Invalid(f"{subject}: {len(lowers)} layers below it, expected 1 to {MOST_LOWERS}; flatten the chain")
    if (upper is None) != (work is None):
        raise Invalid(f"{subject}: an upper and a work directory go together; give both or none")
    attributes = 0 if trusted else NOSUID | NODEV
    if upper is None and len(lowers) == 1:
        return _second_mount(lowers[0], attributes | RDONLY)
    with FilesystemContext("overlay", subject, _HINTS) as context:
        context.set_string("source", SOURCE)
        for key, value in _OPTIONS.items():
            context.set_string(key, value)
        for lower in lowers:
            _set_lower(context, lower)
        if upper is not None and work is not None:
            context.set_path("upperdir", upper)
            context.set_path("workdir", work)
        return context.create(attributes if upper else attributes | RDONLY)


def options_of(lowers: Sequence[Path], *, upper: Path | None, work: Path | None) -> tuple[str, ...]:
    """Return the options of the same mount for mount(8) and OCI bundles. Without `upper` there must be two lowers."""
    options = [f"{key}={value}" for key, value in _OPTIONS.items()]
    options.append("lowerdir=" + ":".join(_escaped(lower) for lower in lowers))
    if upper is None or work is None:
        return ("ro", *options)
    return (*options, f"upperdir={_escaped(upper)}", f"workdir={_escaped(work)}")


def check_unused(upper: Path, lower: Path, subject: str) -> None:
    """Raise Busy while any overlay writes to `upper`, also an overlay that no path leads to.

    A killed daemon or `umount --lazy` leaves such an overlay for as long as a process uses it. With `index=on` the
    kernel refuses a second overlay of an upper before it checks anything else. So this asks for a mount that the kernel
    refuses in any case (upper and work are one directory), which leaves no trace. `lower` is an empty directory. Blocks
    up to GOING_SECONDS, because the kernel may take that long to release an unmounted overlay. On a read-only
    filesystem there are no writers, and the kernel accepts no upper there.
    """
    if os.statvfs(upper).f_flag & os.ST_RDONLY:
        return
    deadline = time.monotonic() + GOING_SECONDS
    while True:
        try:
            _ask_unused(upper, lower, subject)
            return
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(GOING_SECONDS / 10)


def _ask_unused(upper: Path, lower: Path, subject: str) -> None:
    with FilesystemContext("overlay", subject, {errno.EBUSY: "end the processes that still have it open"}) as context:
        context.set_string("source", SOURCE)
        context.set_string("index", "on")
        context.set_path("lowerdir+", lower)
        context.set_path("upperdir", upper)
        context.set_path("workdir", upper)
        try:
            context.create(0).close()
        except Busy:
            raise
        except ImgfsError:
            return


def _escaped(path: Path) -> str:
    """Escape a path as overlayfs expects it in options."""
    return re.sub(r"[\\:,]", r"\\\g<0>", str(path))


def _set_lower(context: FilesystemContext, lower: str | Detached) -> None:
    if isinstance(lower, Detached):
        context.set_descriptor("lowerdir+", lower.fileno())
    else:
        context.set_path("lowerdir+", lower)


def _second_mount(lower: str | Detached, attributes: int) -> Detached:
    mount = clone_mount(lower) if isinstance(lower, Detached) else clone(lower)
    try:
        mount.restrict(attributes)
    except BaseException:
        mount.close()
        raise
    return mount
