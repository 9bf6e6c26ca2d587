"""The mountpoints of a user's snapshot: `rootfs` and `diff` of its directory."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable

import pyfuse3

from imgfs.errors import NotPermitted
from imgfs.fs.caller import Caller
from imgfs.fs.node import SOON, Listing, Node, Stale, control_number, missing
from imgfs.fs.subsystems import UserSubsystems


class Mountpoint(Node):
    """An empty directory. The first walk to it mounts the snapshot over it."""

    __slots__ = ("_number", "_place", "_show", "_subsystems")

    def __init__(
        self,
        subsystems: UserSubsystems,
        number: int,
        name: str,
        show: Callable[[str], Awaitable[bool]],
        place: Callable[[str], str],
    ) -> None:
        super().__init__(control_number(f"snapshot/{number}/{name}"))
        self._subsystems = subsystems
        self._number = number
        self._show = show
        self._place = place

    async def reached(self, caller: Caller) -> None:
        """Mount the snapshot, then raise Stale, so that the kernel walks the path again and into the mount.

        A caller that comes here while the snapshot is mounted passed by while it was mounted, and is beneath the mount.
        """
        if caller.is_daemon:
            return
        id = self._subsystems.snapshots.numbered(self._number).id
        with self._subsystems.failures.noting(f"snapshots/{id}"):
            is_new = await caller.wait(lambda: self._show(id))
            is_lost = self._subsystems.rootfs.places.passes_again(self._place(id), caller.pid)
            if caller.is_elsewhere:
                await caller.wait(lambda: self._show_there(id, caller.pid))
            elif not is_new and is_lost:
                await self._refuse_bind(id, caller)
        raise Stale(f"{self._place(id)}: is mounted now; walk again")

    async def _show_there(self, id: str, process: int) -> None:
        """Mount the snapshot in the mount namespace of the process too. Raises NotPermitted where that fails."""
        places, place = self._subsystems.rootfs.places, self._place(id)
        if not await places.mount_there(place, process) and not await places.is_mounted_there(place, process):
            raise NotPermitted(
                f"snapshot {id}: is mounted, but not in the mount namespace of process {process}; "
                "bind the tree there with rslave propagation"
            )

    async def _refuse_bind(self, id: str, caller: Caller) -> None:
        """Raise NotPermitted if the caller comes by a bind mount that does not show what is mounted in the tree."""
        places, place = self._subsystems.rootfs.places, self._place(id)
        if bind := await places.bind_beneath(place, caller.pid):
            raise NotPermitted(
                f"snapshot {id}: is mounted at {places.path(place)}, and {bind} is a bind that does not show it; "
                f"`umount {bind}`, then `mount --rbind` it again; after `mount --make-shared` of the tree that shows "
                "what is mounted later, too"
            )

    async def attributes(self) -> pyfuse3.EntryAttributes:
        entry = self._subsystems.shown.entry(self.number, stat.S_IFDIR | 0o755)
        entry.entry_timeout = SOON
        return entry

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        raise missing(name)

    async def entries(self, caller: Caller) -> Listing:
        """Only the daemon, on its way to mount, gets the empty list.

        Other callers would take it for the snapshot's content.
        """
        await self.reached(caller)
        return []
