"""Mounts that the daemon makes in mount namespaces of other processes, where its own mounts do not arrive.

A process in a private mount namespace sees the tree without the mounts that the daemon made in it later. The daemon
mounts a clone there when such a process walks to a place, and takes it away before it takes its own mount away.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import trio

from imgfs.aio.flight import Flights
from imgfs.errors import Busy, ImgfsError
from imgfs.filename import with_colons
from imgfs.kernel.mounts import MountEntry, path_in_mount
from imgfs.rootfs.kernel import Kernel

REFUSED_SECONDS = 60.0
"""How long the daemon does not try again to mount in a namespace that refused it."""
_THREADS = 4
_log = logging.getLogger("imgfs.rootfs")


@dataclass(frozen=True, slots=True)
class _Clone:
    """A mount in another namespace. The device tells it from a later mount that reuses the number."""

    namespace: int
    number: int
    device: tuple[int, int]


class NamespaceMounts:
    """The mounts made in other namespaces, by place. Threads do the work."""

    def __init__(self, mountpoint: str, nursery: trio.Nursery, kernel: Kernel) -> None:
        self._mountpoint = mountpoint
        self._kernel = kernel
        self._made: dict[str, set[_Clone]] = {}
        self._refused: dict[int, float] = {}
        """Until when each namespace is not tried again."""
        self._flights: Flights[bool] = Flights(nursery, memory=0)
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._under_way: Counter[str] = Counter()

    def __contains__(self, place: str) -> bool:
        return place in self._made

    async def mount(self, place: str, process: int) -> bool:
        """Mount a clone of what is at the place in the namespace of the process; return whether it was mounted now.

        Return False where the tree is not visible there, where something is mounted over the place already, and where
        the daemon may not mount. A cancelled caller leaves the mount to be made.
        """
        namespace = self._kernel.mount_namespace(process)
        if namespace is None or self._refused.get(namespace, 0.0) > trio.current_time():
            return False
        return await self._flights.join(f"{namespace} {place}", lambda: self._mount(place, process, namespace))

    async def is_mounted(self, place: str, process: int) -> bool:
        """Return whether something is mounted over the place wherever the process sees it."""
        found = await trio.to_thread.run_sync(self._sights, place, process, limiter=self._limiter)
        return bool(found) and all(is_covered for _, is_covered in found.values())

    async def unmount(self, place: str) -> None:
        """Unmount every clone of what is at the place. Raises Busy while a process uses a clone."""
        if self._under_way[place] > 0:
            raise Busy(f"{place}: is being mounted in another mount namespace; try again")
        if clones := self._made.get(place):
            await trio.to_thread.run_sync(self._unmount, frozenset(clones), limiter=self._limiter)
            self._forget(place, clones)

    async def expire(self) -> None:
        """Unmount the clones that no process has used since the last call."""
        for place, clones in list(self._made.items()):
            left = await trio.to_thread.run_sync(self._expire, frozenset(clones), limiter=self._limiter)
            self._forget(place, clones - left)

    async def detach(self) -> None:
        """Unmount every clone, also those in use: processes keep their open files and see the tree beneath."""
        for place, clones in list(self._made.items()):
            work = partial(self._unmount, frozenset(clones), detach=True)
            await trio.to_thread.run_sync(work, limiter=self._limiter)
            self._forget(place, clones)

    def _forget(self, place: str, gone: Collection[_Clone]) -> None:
        left = self._made.get(place, set()) - set(gone)
        if left:
            self._made[place] = left
        else:
            self._made.pop(place, None)

    async def _mount(self, place: str, process: int, namespace: int) -> bool:
        self._under_way[place] += 1
        try:
            made = await trio.to_thread.run_sync(self._attach, place, process, limiter=self._limiter)
        except ImgfsError as error:
            if self._kernel.mount_namespace(process) == namespace:  # else the process has ended meanwhile
                self._refused = {one: until for one, until in self._refused.items() if until > trio.current_time()}
                self._refused[namespace] = trio.current_time() + REFUSED_SECONDS
                _log.info("mounting in another mount namespace failed", extra={"place": place, "reason": error.message})
            return False
        finally:
            self._under_way[place] -= 1
        if made:
            self._made[place] = self._made.get(place, set()) | {
                _Clone(namespace, one.number, one.device) for one in made
            }
        return bool(made)

    def _attach(self, place: str, process: int) -> list[MountEntry]:
        """Mount clones, in a thread; return the new mounts."""
        before = self._sights(place, process)
        targets = [path for path, is_covered in before.values() if not is_covered]
        tree = self._kernel.mount_at(self._mountpoint)
        if not targets or tree is None:
            return []
        self._kernel.attach_there(process, f"{self._mountpoint}/{place}", targets, tree.device)
        bare = {(number, with_colons(path)) for number, (path, is_covered) in before.items() if not is_covered}
        return [one for one in self._kernel.mounts(process) if (one.parent, with_colons(one.mountpoint)) in bare]

    def _sights(self, place: str, process: int) -> dict[int, tuple[str, bool]]:
        """Where the process sees the place: by the number of a mount of the tree, the path and whether it is covered.

        A mount that shows the place's own directory and nothing above it is left out: it may be a clone.
        """
        tree = self._kernel.mount_at(self._mountpoint)
        try:
            seen = self._kernel.mounts(process)
        except OSError:  # the process has ended
            return {}
        covered = {(one.parent, with_colons(one.mountpoint)) for one in seen}
        found: dict[int, tuple[str, bool]] = {}
        for one in seen:
            path = path_in_mount(one, f"/{place}")
            if tree is not None and one.device == tree.device and path is not None and path != one.mountpoint:
                found[one.number] = path, (one.number, with_colons(path)) in covered
        return found

    def _unmount(self, clones: Collection[_Clone], *, detach: bool = False) -> None:
        for process, path in self._sites(clones).values():
            with suppress(ImgfsError) if detach else nullcontext():
                self._kernel.unmount_there(process, path, detach=detach)

    def _expire(self, clones: Collection[_Clone]) -> set[_Clone]:
        """Return the clones that are still mounted afterwards."""
        for process, path in self._sites(clones).values():
            with suppress(ImgfsError):  # the process has ended; the next round finds another process
                self._kernel.expire_there(process, path)
        return set(self._sites(clones))

    def _sites(self, clones: Collection[_Clone]) -> dict[_Clone, tuple[int, str]]:
        """For each clone that is still mounted: a process that sees it, and the path by which that process does."""
        found: dict[_Clone, tuple[int, str]] = {}
        for namespace in {clone.namespace for clone in clones}:
            for process in self._kernel.processes_in(namespace):
                with suppress(OSError):  # the process has ended
                    for one in self._kernel.mounts(process):
                        clone = _Clone(namespace, one.number, one.device)
                        if clone in clones:
                            found.setdefault(clone, (process, one.mountpoint))
        return found
