"""Checks of the state directory and its disk: owner, free space, features of the filesystem."""

from __future__ import annotations

import errno
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from imgfs.doctor.diagnosis import Diagnosis, fail, ok, warn
from imgfs.kernel.mounts import MountEntry, mounts
from imgfs.kernel.probe import PREFIX
from imgfs.lock import holder

_SUBJECT = "state directory"
_MIB = 1 << 20
_ROOM_WARN, _ROOM_FAIL = 1 << 30, 64 * _MIB
_FILES_WARN = 1000
_SYNCS = 5
_SLOW_SYNC = 0.1
"""Seconds. A commit needs four syncs."""
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs")
_VOLATILE = ("tmpfs", "ramfs")
_FUTURE = 300.0
_HOLE = 16 * _MIB


def place_of(state: Path) -> Path:
    """Return the state directory, or its nearest existing parent, in which `imgfs mount` would create it."""
    return next(path for path in (state, *state.parents) if path.is_dir())


def directory(state: Path) -> Diagnosis:
    """Check owner, mode and lock holder."""
    if not state.exists():
        above = place_of(state)
        if os.access(above, os.W_OK):
            return ok(_SUBJECT, f"{state} does not exist yet; the first mount creates it")
        return fail(_SUBJECT, f"{state} does not exist, and {above} is not writable", "choose another with --state")
    if not state.is_dir():
        return fail(_SUBJECT, f"{state} is not a directory", "choose another with --state")
    facts = state.stat()
    if facts.st_uid != os.geteuid() and os.geteuid() != 0:
        return fail(_SUBJECT, f"{state} belongs to user {facts.st_uid}", "choose another with --state")
    if facts.st_mode & 0o077:
        mode = f"{facts.st_mode & 0o777:03o}"
        return warn(_SUBJECT, f"{state} has mode {mode}: other users can read it", f"`chmod 700 {state}`")
    held = holder(state)
    return ok(_SUBJECT, f"{state}, in use by {held.told}" if held else f"{state}, not in use")


def filesystem(place: Path) -> Diagnosis:
    """Check the kind of filesystem: some lose acknowledged data, or have unreliable locks."""
    mount = _mount_of(place)
    if mount is None:
        return warn("filesystem", "is not in the mount table", "check that /proc belongs to this mount namespace")
    kind = f"{mount.filesystem} at {mount.mountpoint}"
    if mount.filesystem in _VOLATILE:
        return warn("filesystem", f"{kind}: a reboot deletes all data", "choose a state directory on a disk")
    if mount.filesystem in _REMOTE:
        return warn(
            "filesystem", f"{kind}: locks and syncs may be unreliable", "choose a state directory on a local disk"
        )
    if mount.filesystem == "overlay":
        what = f"{kind}: snapshots are not writable, and EROFS may be refused because the overlay is stacked"
        return warn("filesystem", what, "give the container a volume for the state")
    return ok("filesystem", kind)


def room(place: Path) -> Diagnosis:
    """Check free bytes and inodes."""
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    shown = f"{free / 1e9:.1f} GB of {disk.f_blocks * disk.f_frsize / 1e9:.1f} GB are free"
    cure = "`imgfs gc` removes what nothing refers to; set quota_bytes or free_space_percent to keep space free"
    if free < _ROOM_FAIL:
        return fail("room", shown, cure)
    if disk.f_files and disk.f_favail < _FILES_WARN:
        return warn("room", f"{shown}, but only {disk.f_favail} inodes", "delete unneeded files from that disk")
    return warn("room", shown, cure) if free < _ROOM_WARN else ok("room", shown)


def disk(place: Path) -> Iterator[Diagnosis]:
    """Try writing, syncing, holes and attributes, with a temporary file."""
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=PREFIX) as name:
            yield _sync(Path(name))
            yield _holes(Path(name) / "hole")
            yield _attributes(Path(name))
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        if error.errno == errno.EROFS:
            what = f"{place} is read-only: imgfs serves existing content but cannot fetch more"
            yield warn("writing", what, "remount it writable, then mount imgfs again")
        elif error.errno == errno.EACCES:
            yield fail("writing", f"{place}: {reason}", "run as its owner or as root")
        else:
            yield fail("writing", f"{place}: {reason}", "check that disk")


def times(state: Path, now: float | None = None) -> Iterator[Diagnosis]:
    """Check for files from the future: the clock was set back, and ages are computed wrongly."""
    limit = (time.time() if now is None else now) + _FUTURE
    try:
        newest = max((entry.stat().st_mtime for entry in os.scandir(state)), default=0.0)
    except OSError:
        return
    if newest > limit:
        shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(newest))
        yield warn("times", f"{state} has files of {shown}, which is in the future", "check that the clock is right")


def _sync(place: Path) -> Diagnosis:
    taken: list[float] = []
    with (place / "sync").open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(bytes(4096))
            begun = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - begun)
    median = statistics.median(taken)
    if median > _SLOW_SYNC:
        what = f"a sync takes {median * 1000:.0f} ms: each commit needs several"
        return warn("sync", what, "choose a state directory on a faster disk")
    return ok("sync", f"takes {median * 1000:.1f} ms")


def _holes(path: Path) -> Diagnosis:
    with path.open("wb") as file:
        file.truncate(_HOLE)
        file.flush()
        used = os.fstat(file.fileno()).st_blocks * 512
    if used >= _HOLE // 2:
        return warn(
            "holes", "sparse files take their full size on disk", "choose a state directory on ext4, xfs or btrfs"
        )
    return ok("holes", "take no space")


def _attributes(place: Path) -> Diagnosis:
    try:
        os.setxattr(place, "user.imgfs.probe", b"1")
    except OSError as error:
        what = f"are refused ({os.strerror(error.errno or errno.EIO)}): a lost database cannot be rebuilt from files"
        return warn("extended attributes", what, "choose a state directory on ext4, xfs or btrfs")
    return ok("extended attributes", "can be set")


def _mount_of(place: Path) -> MountEntry | None:
    """Return the mount of `place`: the last of those with the longest path above it."""
    real = os.path.realpath(place)
    above = [one for one in mounts() if one.mountpoint == "/" or f"{real}/".startswith(f"{one.mountpoint}/")]
    return max(above, key=lambda one: len(one.mountpoint), default=None)
