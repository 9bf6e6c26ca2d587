"""What imgfs can mount with this kernel, user and disk. The probe makes each kind of mount detached, and closes it.

The reason of each refusal is a sentence for people: subject, reason, what to do.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from imgfs.errors import ImgfsError, NoSpace, from_os
from imgfs.kernel import fuse_overlay
from imgfs.kernel.erofs import detached_erofs
from imgfs.kernel.mountapi import Detached
from imgfs.kernel.overlay import detached_overlay
from imgfs.state import is_read_only

_SIZE, _DEVICES, _ROOT = 4096, 1152, 1280
"""Bytes: the image, and where in it the device table and the root inode are."""
_CHUNKED_FILE, _DEVICE_TABLE = 4, 8
_MEMORY = Path("/dev/shm")
PREFIX = ".tmp-probe-"
"""Prefix of the directory that the probe makes in the state directory and removes."""


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether something works here; if not, `reason` says why and what to do."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What can be mounted from files of one state directory.

    `erofs`: images with device files. `overlay`: writable directories over others. `overlay_over_erofs`: the same over
    a detached EROFS. `fuse_overlayfs`: the program for users who may not mount.
    """

    erofs: Capability
    overlay: Capability
    overlay_over_erofs: Capability
    fuse_overlayfs: Capability

    def by_name(self) -> dict[str, Capability]:
        """Return the capabilities by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def probe(state: Path) -> Capabilities:
    """Try each mount with files in `state`, in a few milliseconds. Nothing is visible to other processes, nothing is
    left.

    If `state` is read-only or full, the files go to the directory for temporary files, and if that is full too, to
    memory, from which no EROFS can be mounted: the daemon must start without free space. Raises NoSpace if all of them
    are full, and StorageFailed if `state` cannot be written for another reason.
    """
    try:
        if not is_read_only(state):
            with suppress(NoSpace):
                return _probe_in(state)
        with suppress(NoSpace, FileNotFoundError):  # tempfile raises FileNotFoundError if all its directories are full
            return _probe_in(None)
        return _probe_in(_MEMORY)
    except OSError as error:
        raise from_os(error, str(state)) from None


def _probe_in(place: Path | None) -> Capabilities:
    """Probe in a new directory below `place`. Raises NoSpace, OSError."""
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=PREFIX) as directory, ExitStack() as mounts:
            return _try_all(Path(directory), mounts)
    except OSError as error:
        if isinstance(failure := from_os(error, str(place)), NoSpace):
            raise failure from None
        raise


def _try_all(directory: Path, mounts: ExitStack) -> Capabilities:
    image, lower = directory / "image.erofs", directory / "lower"
    image.write_bytes(_smallest_image())
    lower.mkdir()
    kept: list[Detached] = []
    erofs = _try(directory, lambda: kept.append(mounts.enter_context(detached_erofs(image, [image], trusted=False))))
    overlay = _try(directory, lambda: _overlay_over(str(lower), directory / "plain"))
    both = overlay if erofs else erofs
    if both:
        both = _try(directory, lambda: _overlay_over(kept[0], directory / "stacked"))
    return Capabilities(erofs, overlay, both, _try(directory, fuse_overlay.program))


def _overlay_over(lower: str | Detached, directory: Path) -> None:
    upper, work = directory / "upper", directory / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    detached_overlay([lower], upper=upper, work=work, trusted=False, subject=str(directory.parents[1])).close()


def _try(directory: Path, action: Callable[[], object]) -> Capability:
    """Try a mount. The reason names the state directory, because `directory` no longer exists when it is read."""
    try:
        action()
    except NoSpace:
        raise  # a full disk says nothing about the kernel
    except ImgfsError as error:
        return Capability(error.message.replace(f"/{directory.name}", ""))
    return Capability()


def _smallest_image() -> bytes:
    """An EROFS image with an empty root directory and one device of 8 blocks of 512 bytes (erofs_fs.h)."""
    superblock = bytearray(128)
    struct.pack_into("<I8xBxHQ", superblock, 0, 0xE0F5E1E2, 9, _ROOT // 32, 1)
    struct.pack_into("<I", superblock, 36, _SIZE // 512)
    struct.pack_into("<I", superblock, 80, _CHUNKED_FILE | _DEVICE_TABLE)
    struct.pack_into("<HH", superblock, 86, 1, _DEVICES // 128)
    device = struct.pack("<64sII56x", b"", 8, _SIZE // 512)
    root = struct.pack("<HHHHIIIIHHI", 0, 0, 0o40755, 2, 0, 0, 0, 1, 0, 0, 0)
    return (bytes(1024) + superblock + device + root).ljust(_SIZE, b"\0")
