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
        if caller.is_daemon:
            return
        id = self._subsystems.snapshots.numbered(self._number).id
        with self._subsystems.failures.noting(f"snapshots/{id}"):
            is_new = await caller.wait(lambda: self._show(id))
            is_lost = self._subsystems.rootfs.places.passes_again(self._place(id), caller.pid)
            if not is_new:
                await self._refuse_passed_by(id, caller, is_lost=is_lost)
        # A caller that reaches this directory although it was mounted before passed it during the mount.
        raise Stale(f"{self._place(id)}: is mounted now; walk again")

    async def _refuse_passed_by(self, id: str, caller: Caller, *, is_lost: bool) -> None:
        """Raise NotPermitted for a caller whose path leads to the directory beneath the mount and never into it.

        `is_lost`: the caller walked again and came here again.
        """
        if caller.is_elsewhere:
            raise NotPermitted(
                f"snapshot {id}: is mounted, but not in the mount namespace of process {caller.pid}; "
                "bind the tree there with rslave propagation"
            )
        places, place = self._subsystems.rootfs.places, self._place(id)
        if is_lost and (bind := await places.bind_beneath(place, caller.pid)):
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
