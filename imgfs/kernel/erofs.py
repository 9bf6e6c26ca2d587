"""Mounting an EROFS metadata image and its device files, straight from files (Linux 6.12; linux/fs/erofs/super.c).

imgfs/erofs writes the image; overlay.py mounts overlays over it.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from imgfs.errors import Malformed, NotFound, from_os
from imgfs.kernel.mountapi import NODEV, NOSUID, RDONLY, Detached, FilesystemContext

_SUPERBLOCK = 1024
_SUPERBLOCK_SIZE = 128
_MAGIC = 0xE0F5E1E2
_EXTRA_DEVICES = 86
_HINTS = {
    errno.EINVAL: "the kernel's log (dmesg) says what is wrong with the image; build it again",
    errno.ENOTBLK: f"it takes Linux 6.12 (here {os.uname().release}) and a file on a disk, not on overlayfs or tmpfs",
    errno.ENODEV: "load the kernel's erofs module (modprobe erofs)",
    errno.ELOOP: "the image lies on stacked filesystems; move the state directory to a plain one",
}


def detached_erofs(image: Path, devices: Sequence[Path], *, trusted: bool) -> Detached:
    """Mount `image` read-only and detached, with `devices` in the order of its device table.

    The caller attaches it, or uses it as the lower of an overlay. The source in the table of mounts is the path of
    `image`. Unless `trusted`, setuid bits and device nodes do not work. The call walks the paths of the devices, which
    may lead through the daemon's own tree, so call it in a thread. Raises NotFound, Malformed, NotPermitted,
    Unsupported or Invalid; then nothing is mounted.
    """
    _check(image, len(devices))
    with FilesystemContext("erofs", str(image), _HINTS) as context:
        context.set_path("source", image)
        context.set_flag("ro")
        for device in devices:
            context.set_path("device", device)
        return context.create(RDONLY if trusted else RDONLY | NOSUID | NODEV)


def _check(image: Path, devices: int) -> None:
    """Raise for errors that the kernel reports only in its log, or not at all (an image mounted without its
    devices)."""
    try:
        with image.open("rb") as file:
            file.seek(_SUPERBLOCK)
            superblock = file.read(_SUPERBLOCK_SIZE)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{image}: there is no such file; build the image again") from None
    except OSError as error:
        raise from_os(error, str(image)) from None
    if len(superblock) < _SUPERBLOCK_SIZE or struct.unpack_from("<I", superblock)[0] != _MAGIC:
        raise Malformed(f"{image}: is no EROFS image: its superblock is missing; build it again")
    expected = struct.unpack_from("<H", superblock, _EXTRA_DEVICES)[0]
    if expected != devices:
        raise Malformed(f"{image}: has {expected} devices in its table, {devices} were given; give one file each")
