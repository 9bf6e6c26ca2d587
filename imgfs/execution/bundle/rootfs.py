"""What the host does in a container's rootfs before the container runs: reads two files and creates a directory.

The image is not trusted: the kernel resolves every path with the rootfs as its root (openat2(2)).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from imgfs.errors import Invalid, NotFound, TooLarge, Unsupported, from_os
from imgfs.kernel.resolve import open_in_root

FILE_MAX = 4 << 20
"""Largest size in bytes of /etc/passwd or /etc/group."""
PATH_MAX = 4096
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
"""Opening a FIFO or a device must not block or have an effect."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


def read_file_in(root: int, path: str) -> bytes:
    """Read a regular file of the rootfs; empty if there is none. Raises TooLarge, StorageFailed."""
    try:
        file = open_in_root(root, os.fsencode(path), os.O_PATH)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return b""
        raise from_os(error, f"rootfs: {path}") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return b""
        with open(os.open(f"/proc/self/fd/{file}", _FILE | os.O_CLOEXEC), "rb") as reading:
            data = reading.read(FILE_MAX + 1)
    except OSError as error:
        raise from_os(error, f"rootfs: {path}") from None
    finally:
        os.close(file)
    if len(data) > FILE_MAX:
        raise TooLarge(f"rootfs: {path}: is over {FILE_MAX} bytes")
    return data


def make_directory_in(root: int, path: str, what: str) -> None:
    """Create a directory and its missing parents. Symbolic links are followed within the rootfs.

    Raises Invalid, with `what` as its subject, if something else has that name.
    """
    words = [word for word in path.split("/") if word not in ("", ".")]
    for count in range(1, len(words) + 1):
        if not _is_directory(root, "/".join(words[:count]), what):
            _make(root, "/".join(words[: count - 1]), words[count - 1], what)
            if not _is_directory(root, "/".join(words[:count]), what):
                raise Invalid(f"{what}: {path[:200]!r} goes through a link to a missing target; give another with -w")


def _is_directory(root: int, path: str, what: str) -> bool:
    try:
        os.close(open_in_root(root, os.fsencode(path), _DIRECTORY))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _in_the_way(error, path, what) from None
    return True


def _make(root: int, above: str, name: str, what: str) -> None:
    try:
        directory = open_in_root(root, os.fsencode(above or "."), _DIRECTORY)
        try:
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
                made = open_in_root(directory, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    os.fchmod(made, 0o755)  # regardless of the caller's umask
                finally:
                    os.close(made)
        finally:
            os.close(directory)
    except OSError as error:
        raise _in_the_way(error, f"{above}/{name}", what) from None


def _in_the_way(error: OSError, path: str, what: str) -> Exception:
    if error.errno == errno.ENOTDIR:
        return Invalid(f"{what}: {path[:200]!r} is not a directory in the image; give another with -w")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return Invalid(f"{what}: {path[:200]!r}: {os.strerror(error.errno)}; give another with -w")
    if error.errno == errno.ENOENT:
        return NotFound(f"{what}: {path[:200]!r} was removed meanwhile")
    if error.errno == errno.ENOSYS:
        return Unsupported(f"{what}: this kernel has no openat2(2); Linux 5.6 or later is needed")
    return from_os(error, f"{what}: {path[:200]!r}")
