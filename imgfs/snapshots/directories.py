"""The directories of user snapshots: `snapshots/<number>/{upper,work}` in the state directory.

A directory is built under a temporary name and renamed, so a directory with a number is complete. A removal renames it
to a temporary name first. Everything with a temporary name is garbage. All functions block.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from imgfs.disk.durable import TEMPORARY, fsync_path, open_directory, publish, temporary_name
from imgfs.errors import from_os, opened_read_only
from imgfs.state import is_read_only

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOTE = "user.imgfs.snapshot"
_UPPER_MODE = 0o755
"""Mode of the root directory of a snapshot without a parent."""


class SnapshotDirectories:
    """The directories of one state directory. Errors are NoSpace, ReadOnly and StorageFailed."""

    def __init__(self, state: Path, *, read_only: bool = False) -> None:
        """Open `snapshots/` below `state`, and create it if needed. With `read_only` it may be missing."""
        self._root = state / "snapshots"
        self.empty = self._root / "empty"
        """A directory that stays empty. It is the lower of an overlay without a parent: overlayfs needs at least one
        lower."""
        try:
            self._is_opened_read_only = read_only or not open_directory(self.empty)
        except OSError as error:
            raise from_os(error, str(self._root)) from None

    def upper(self, number: int) -> Path:
        """Return the directory with the changes of a snapshot, in the format of an overlay's upper directory."""
        return self._root / str(number) / "upper"

    def work(self, number: int) -> Path:
        """Return the overlay's work directory, beside the changes."""
        return self._root / str(number) / "work"

    def is_read_only(self) -> bool:
        """Whether no snapshot can be changed, because the filesystem is read-only."""
        return is_read_only(self._root)

    def numbers(self) -> set[int]:
        """Return the numbers of all snapshots that have a directory."""
        return {int(name) for name in self._names() if name.isdecimal()}

    def garbage(self) -> list[Path]:
        """Return what killed processes left under temporary names. Call it before anything is made."""
        return [self._root / name for name in self._names() if name.startswith(TEMPORARY)]

    def make(self, number: int) -> None:
        """Make the directory of a snapshot without changes, durably and atomically."""
        if self._is_opened_read_only:
            raise opened_read_only(f"snapshot directory {number}")
        temporary = self._root / temporary_name()
        try:
            temporary.mkdir(mode=0o700)
            for name, mode in (("upper", _UPPER_MODE), ("work", 0o700)):
                (temporary / name).mkdir()
                (temporary / name).chmod(mode)
                fsync_path(temporary / name)
            fsync_path(temporary)
            publish(temporary, self._root / str(number))
        except OSError as error:
            remove_tree(temporary)
            raise from_os(error, f"snapshot directory {number}") from None

    def set_aside(self, number: int) -> Path | None:
        """Rename a snapshot's directory durably for `remove_tree`; return its temporary path, or None if it is
        missing."""
        temporary = self._root / temporary_name()
        try:
            publish(self._root / str(number), temporary)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os(error, f"snapshot directory {number}") from None
        return temporary

    def is_empty(self, number: int) -> bool:
        """Whether a snapshot has no changes."""
        try:
            return not os.listdir(self.upper(number))
        except FileNotFoundError:
            return True
        except OSError as error:
            raise from_os(error, f"snapshot directory {number}") from None

    def note(self, number: int, text: bytes) -> None:
        """Store the row of a snapshot as an xattr, from which a lost database is rebuilt. Best effort, not synced."""
        with suppress(OSError):
            os.setxattr(self._root / str(number), _NOTE, text)

    def noted(self, number: int) -> bytes | None:
        """Return what `note` wrote, or None if nothing can be read."""
        try:
            return os.getxattr(self._root / str(number), _NOTE)
        except OSError:
            return None

    def _names(self) -> Collection[str]:
        try:
            return os.listdir(self._root)
        except FileNotFoundError:  # never made: the state directory is read-only
            return []
        except OSError as error:
            raise from_os(error, str(self._root)) from None


def remove_tree(path: Path, each: Callable[[], object] = lambda: None) -> None:
    """Remove a directory and everything below it. A missing directory is no error.

    `each` is called before each entry; if it raises, the rest stays for a later call. Links are not followed, mount
    points are not entered, and directories that refuse their owner get mode 0700 (an overlay's work directory has mode
    0). It uses one descriptor and no recursion, so a tree of any depth can be removed. It does not use Disk: the
    durable rename to a temporary name is the removal, and the next start removes what is left under such a name.

    Raises OSError and whatever `each` raises.
    """
    try:
        here = _open_up(str(path), None)
    except FileNotFoundError:
        return
    try:
        trail: list[str] = []
        pending = [_unlink_files(here, each)]
        while pending:
            if pending[-1]:
                trail.append(pending[-1].pop())
                here = _step(here, trail[-1])
                pending.append(_unlink_files(here, each))
            else:
                pending.pop()
                if trail:
                    here = _step(here, "..")
                    os.rmdir(trail.pop(), dir_fd=here)
    finally:
        os.close(here)
    path.rmdir()


def _unlink_files(directory: int, each: Callable[[], object]) -> list[str]:
    """Unlink everything but directories; return the names of the directories."""
    below: list[str] = []
    for name in os.listdir(directory):
        each()
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            below.append(name)
        else:
            os.unlink(name, dir_fd=directory)
    return below


def _step(here: int, name: str) -> int:
    """Open `name` in place of `here`."""
    there = _open_up(name, here)
    os.close(here)
    return there


def _open_up(name: str, above: int | None) -> int:
    """Open a directory and give its owner all rights in it."""
    try:
        directory = os.open(name, _DIRECTORY, dir_fd=above)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=above)
        directory = os.open(name, _DIRECTORY, dir_fd=above)
    if os.fstat(directory).st_mode & 0o700 != 0o700:
        os.fchmod(directory, 0o700)
    return directory
