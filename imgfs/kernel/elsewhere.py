"""Which mounts have copies that outlast them: binds in this mount namespace, and clones in other namespaces.

umount2(2) with MNT_EXPIRE tells whether one mount is used, and not whether its filesystem is. A program that was
started in a mount namespace of its own (unshare(1), a container) uses a copy.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

from imgfs.kernel.mounts import MountEntry, mounts

_View = tuple[str, str]


def mounted_elsewhere(wanted: Collection[MountEntry]) -> list[MountEntry]:
    """Return those of `wanted`, mounts of this namespace, whose filesystem has another mount, in any namespace.

    A copy that is unmounted together with the mount here, by propagation, does not count. It reads the mounts of every
    visible process and blocks. Raises OSError.
    """
    if not wanted:
        return []
    own = mounts()
    told = {mount.number: mount.groups for mount in own}
    left = list(wanted)
    for table in (own, *_tables_of_others()):
        copied = _Copies(table)
        left = [mount for mount in left if not copied.outlast(mount, told.get(mount.parent, frozenset()))]
    return [mount for mount in wanted if mount not in left]


class _Copies:
    """A table of mounts by filesystem."""

    def __init__(self, table: Sequence[MountEntry]) -> None:
        self._by_number = {mount.number: mount for mount in table}
        self._by_device: dict[tuple[int, int], list[MountEntry]] = defaultdict(list)
        for mount in table:
            self._by_device[mount.device].append(mount)

    def outlast(self, mount: MountEntry, told: frozenset[str]) -> bool:
        """Whether a copy of `mount` stays after its unmount; `told` are the peer groups that propagate the unmount."""
        for copy in self._by_device.get(mount.device, ()):
            above = self._by_number.get(copy.parent)
            if copy.number != mount.number and not (above and above.groups & told):
                return True
        return False


def _tables_of_others() -> Iterator[list[MountEntry]]:
    """Yield the tables of other mount namespaces, one for each root directory, because a table shows only that
    subtree."""
    seen = {_view_of("self")}
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # the process has ended, or an ordinary user may not read its table
            if (view := _view_of(process)) not in seen:
                seen.add(view)
                yield mounts(int(process))


def _view_of(process: str) -> _View:
    return os.readlink(f"/proc/{process}/ns/mnt"), os.readlink(f"/proc/{process}/root")
