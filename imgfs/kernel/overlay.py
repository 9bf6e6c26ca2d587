"""Mounting overlayfs: a writable view of a chain of directories, or a read-only one (overlayfs.rst of the kernel).

What the layers are, and that no upper is used twice, is the caller's to know: the kernel only warns in its log.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from imgfs.errors import Busy, ImgfsError, Invalid
from imgfs.kernel.mountapi import NODEV, NOSUID, RDONLY, Context, Detached, clone, clone_mount

SOURCE = "imgfs"
"""What stands as the source of every overlay here in the table of mounts."""
GOING_SECONDS = 0.5
"""How long the kernel may take to let go of an overlay that was unmounted."""
MOST_LOWERS = 500
"""OVL_MAX_STACK of the kernel."""

_OPTIONS = {"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "nfs_export": "off", "xino": "auto"}
"""Layers come from images, so what they say in xattrs is not followed. Renaming a directory of a lower is therefore
EXDEV, as under every container engine, and `mv` copies; an upper stays what an OCI layer can say. xino: one st_dev and
lasting inode numbers, unless a lower filesystem has no UUID (EROFS images need one)."""
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
    detached mount (Linux 6.15), which stays the caller's to close. Blocks until every lower and `target` have been
    walked to, which may be through the daemon's own tree: call it in a thread. Raises NotFound, NotPermitted,
    Unsupported or Invalid; then nothing is mounted.
    """
    with detached_overlay(lowers, upper=upper, work=work, trusted=trusted, subject=target) as mount:
        mount.attach(target)


def detached_overlay(
    lowers: Sequence[str | Detached], *, upper: Path | None, work: Path | None, trusted: bool, subject: str = "overlay"
) -> Detached:
    """The same mount in no tree yet; errors are about `subject`. Blocks and raises as mount_overlay."""
    if not 0 < len(lowers) <= MOST_LOWERS:
        raise Invalid(f"{subject}: {len(lowers)} layers below it, expected 1 to {MOST_LOWERS}; flatten the chain")
    if (upper is None) != (work is None):
        raise Invalid(f"{subject}: an upper and a work directory go together; give both or none")
    attributes = 0 if trusted else NOSUID | NODEV
    if upper is None and len(lowers) == 1:
        return _second_mount(lowers[0], attributes | RDONLY)
    with Context("overlay", subject, _HINTS) as context:
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
    """The same mount for mount(8) and OCI bundles; two lowers at least where there is no `upper`."""
    options = [f"{key}={value}" for key, value in _OPTIONS.items()]
    options.append("lowerdir=" + ":".join(_escaped(lower) for lower in lowers))
    if upper is None or work is None:
        return ("ro", *options)
    return (*options, f"upperdir={_escaped(upper)}", f"workdir={_escaped(work)}")


def check_unused(upper: Path, lower: Path, subject: str) -> None:
    """Raise Busy while any overlay writes to `upper`, one that no path leads to among them.

    Such a one is left by a killed daemon, or by `umount --lazy`, for as long as a process uses it. The kernel tells by
    refusing another one with `index=on`, before it looks at anything else: so what is asked for is one that it refuses
    in any case (upper and work directory in one), which leaves no trace. `lower` is an empty directory. Blocks, up to
    GOING_SECONDS: that long the kernel may take to let go of one that was unmounted.
    A read-only filesystem has no writers, and the kernel takes no upper from there.
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
    with Context("overlay", subject, {errno.EBUSY: "end the processes that still have it open"}) as context:
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
    """As overlayfs reads it in options."""
    return re.sub(r"[\\:,]", r"\\\g<0>", str(path))


def _set_lower(context: Context, lower: str | Detached) -> None:
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
