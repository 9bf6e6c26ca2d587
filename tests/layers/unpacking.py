"""The naive oracle of the merged tree: really unpacks entries into a directory, one layer over another.

Every path is resolved component by component inside that directory, so a layer reaches nothing outside it. A regular
file holds the mtime of its entry as text.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from imgfs.layers.entry import Entry, EntryKind

LINKS_MAX = 40
_SPARE = "~being linked"


class Refused(Exception):
    """The layer cannot be unpacked."""


class Unpacking:
    """A root filesystem that is unpacked below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.chmod(0o755)

    def apply(self, entries: Sequence[Entry]) -> None:
        """Unpack one layer."""
        stashed = self._stash_targets(entries)
        overridden = {self._link_at(entry.path) for entry in entries if entry.kind is EntryKind.DIRECTORY} - {None}
        for entry in entries:
            if entry.kind is EntryKind.WHITEOUT:
                parent, _, name = entry.path.rpartition(b"/")
                if (directory := self._resolve(parent, overridden)) is not None:
                    _remove(directory / os.fsdecode(name))
            elif entry.kind is EntryKind.OPAQUE and (directory := self._resolve(entry.path, overridden)) is not None:
                for child in directory.iterdir():
                    _remove(child)
        for entry in entries:
            if entry.kind not in (EntryKind.WHITEOUT, EntryKind.OPAQUE):
                self._unpack(entry, stashed)

    def _stash_targets(self, entries: Sequence[Entry]) -> dict[bytes, Path]:
        """Keep the lower targets of hard links under names outside the root, because a whiteout may remove them."""
        stash = self.root.with_name(f"{self.root.name}.stash")
        shutil.rmtree(stash, ignore_errors=True)
        stash.mkdir()
        found: dict[bytes, Path] = {}
        for entry in entries:
            parent, _, name = entry.link.rpartition(b"/")
            if entry.kind is not EntryKind.HARDLINK or (directory := self._resolve(parent)) is None:
                continue
            place = directory / os.fsdecode(name)
            if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()) and entry.link not in found:
                found[entry.link] = stash / str(len(found))
                os.link(place, found[entry.link], follow_symlinks=False)
        return found

    def _link_at(self, path: bytes) -> int | None:
        """The inode of the symbolic link at `path`, if there is one."""
        parent, _, name = path.rpartition(b"/")
        directory = self._resolve(parent)
        if directory is None or not (directory / os.fsdecode(name)).is_symlink():
            return None
        return (directory / os.fsdecode(name)).lstat().st_ino

    def _unpack(self, entry: Entry, stashed: dict[bytes, Path]) -> None:
        if entry.kind is EntryKind.HARDLINK:
            self._link_aside(entry.link, stashed)
        parent, _, name = entry.path.rpartition(b"/")
        directory = self._resolve(parent, make=True)
        if directory is None:
            raise Refused(entry.path)
        place = directory / os.fsdecode(name)
        if entry.kind is EntryKind.DIRECTORY:
            if place.is_symlink() or not place.is_dir():
                _remove(place)
                place.mkdir()
            place.chmod(entry.mode)
            return
        _remove(place)
        if entry.kind is EntryKind.HARDLINK:
            (self.root / _SPARE).rename(place)
        elif entry.kind is EntryKind.SYMLINK:
            place.symlink_to(os.fsdecode(entry.link))
        else:
            place.write_text(str(entry.mtime))
            place.chmod(entry.mode)

    def _link_aside(self, target: bytes, stashed: dict[bytes, Path]) -> None:
        parent, _, name = target.rpartition(b"/")
        directory = self._resolve(parent)
        place = directory / os.fsdecode(name) if directory is not None else None
        if place is None or not os.path.lexists(place):
            place = stashed.get(target)
        if place is None:
            raise Refused(target)
        try:
            os.link(place, self.root / _SPARE, follow_symlinks=False)
        except OSError as error:
            raise Refused(target) from error

    def _resolve(self, path: bytes, overridden: set[int | None] | None = None, *, make: bool = False) -> Path | None:
        """Return the real directory of `path`, with links resolved as in a chroot; None if it is no directory."""
        todo, here, links = [part for part in os.fsdecode(path).split("/") if part], [], 0
        while todo:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                here = here[:-1]
                continue
            place = self.root.joinpath(*here, part)
            if make and not os.path.lexists(place):
                place.mkdir(mode=0o755)
            if place.is_symlink():
                links += 1
                if links > LINKS_MAX or place.lstat().st_ino in (overridden or ()):
                    return None
                target = os.readlink(place)
                here = [] if target.startswith("/") else here
                todo = [*target.split("/"), *todo]
            elif place.is_dir():
                here = [*here, part]
            else:
                return None
        return self.root.joinpath(*here)

    def listing(self) -> dict[bytes, tuple[object, ...]]:
        """Type, mode and content of every path; links share the set of their names."""
        found = {bytes(path.relative_to(self.root)): path for path in self.root.rglob("*")}
        names: dict[int, set[bytes]] = {}
        for name, path in found.items():
            names.setdefault(path.lstat().st_ino, set()).add(name)
        return {name: (*_facts(path), frozenset(names[path.lstat().st_ino])) for name, path in found.items()}


def _facts(path: Path) -> tuple[object, ...]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return ("link", os.fsencode(os.readlink(path)))
    return ("directory", mode) if stat.S_ISDIR(mode) else ("file", mode, int(path.read_text()))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
