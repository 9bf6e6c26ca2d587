"""Places: directories of the tree over which the daemon mounts, at most one mount each. Idle mounts are taken away.

This module owns which mounts the daemon made; chains.py and users.py own what they show. Mounting walks the daemon's
own tree, so threads that do nothing else do it, while the event loop answers the walk. Mounting and unmounting have
separate threads: a commit unmounts while it holds a directory for which a mount may wait.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager, suppress

import trio

from imgfs.aio.flight import Flights
from imgfs.errors import Busy, ImgfsError, NotFound
from imgfs.filename import with_colons
from imgfs.kernel.mounts import MountEntry, path_in_mount
from imgfs.rootfs.kernel import HOST, Kernel
from imgfs.rootfs.namespaces import NamespaceMounts

Attach = Callable[[str], object]
"""Mounts something over the path it is given; runs in a thread, raises ImgfsError."""

THREADS = 8
PASSING_SECONDS = 0.5
"""How long a copy of a mount may be temporary. A program that starts in a new mount namespace, such as a container, has
a copy of every mount until it has arranged its own mounts."""
_POLL_FIRST, _POLL_MOST = 0.001, 0.05
_WRITABLE = ("overlay", "fuse.fuse-overlayfs")
"""Filesystem types of writable snapshots."""
_log = logging.getLogger("imgfs.rootfs")


class Places:
    """The mounts below one mountpoint. A place is a path relative to it."""

    def __init__(self, mountpoint: str, nursery: trio.Nursery, kernel: Kernel = HOST) -> None:
        self._mountpoint = mountpoint
        self._kernel = kernel
        self._mounted: dict[str, object] = {}
        """The places, in order of mounting, so that `clear` unmounts the latest first. The value identifies the mount.
        """
        self._closed: Counter[str] = Counter()
        self._walked: dict[str, str] = {}
        """The spelling by which the kernel knows a place whose directory it keeps locked."""
        self._passed_by: dict[str, int] = {}
        """The process that last reached the directory beneath each mount."""
        self._flights: Flights[bool] = Flights(nursery, memory=0)
        self._elsewhere = NamespaceMounts(mountpoint, nursery, kernel)
        self._mounting = trio.CapacityLimiter(THREADS)
        self._unmounting = trio.CapacityLimiter(THREADS)

    def __len__(self) -> int:
        return len(self._mounted)

    def __contains__(self, place: str) -> bool:
        return place in self._mounted

    def is_taken(self, place: str) -> bool:
        """Whether a mount is at the place or is about to be."""
        return place in self._mounted or place in self._flights

    def __iter__(self) -> Generator[str]:
        yield from list(self._mounted)

    def path(self, place: str) -> str:
        """Return the path of the place."""
        return f"{self._mountpoint}/{self._walked.get(place, place)}"

    async def mount(self, place: str, attach: Attach) -> bool:
        """Mount over the place unless something is mounted there; return whether this call or one it joined mounted it.

        Raises what `attach` raises, and Busy while the place is closed. If the caller is cancelled, the mount goes on.
        """
        if place in self._mounted:
            return False
        return await self._flights.join(place, lambda: self._mount(place, attach))

    async def mount_there(self, place: str, process: int) -> bool:
        """Mount a clone of the place's mount in the mount namespace of the process; return whether it was mounted now.

        Returns False if nothing is mounted at the place, and as NamespaceMounts.mount.
        """
        if place not in self._mounted or self._closed[place] > 0:
            return False
        mark = self._mounted[place]
        if not await trio.to_thread.run_sync(self._is_topmost, place, mark, limiter=self._unmounting):
            return False
        return await self._elsewhere.mount(place, process)

    async def is_mounted_there(self, place: str, process: int) -> bool:
        """Return whether a mount covers the place wherever the process sees it in its own mount namespace."""
        return await self._elsewhere.is_mounted(place, process)

    async def unmount(self, place: str) -> None:
        """Unmount the place if something is mounted there. Raises Busy while a process uses the mount.

        Raises Busy also while it is being mounted: the caller may hold a directory for which that mount waits, so
        waiting could deadlock.
        """
        if place in self._flights:
            raise Busy(f"{place}: is being mounted; try again")
        await self._elsewhere.unmount(place)
        if place not in self._mounted:
            return
        mark = self._mounted[place]
        path, limiter = self.path(place), self._unmounting
        try:
            is_uncovered = await trio.to_thread.run_sync(self._take_away, place, mark, limiter=limiter)
        except Busy:
            if inside := await trio.to_thread.run_sync(self._kernel.mounts_below, path, limiter=limiter):
                raise Busy(f"{place}: has mounts in it; `umount -R` them first: {inside[-1].mountpoint}") from None
            raise Busy(f"{place}: is in use; end the processes in it (`fuser -vm {path}` shows them)") from None
        except NotFound:
            _log.info("another process had unmounted the mount", extra={"place": place})
        else:
            if not is_uncovered:
                raise Busy(f"{place}: another filesystem is mounted over it; `umount {path}` first")
        self._forget(place, mark)

    @contextmanager
    def closed_snapshot(self, id: str, walked: str) -> Generator[None]:
        """As `closed`, for a snapshot that a caller moves or removes by the name `walked`, which may be colon-free.

        A directory has one name in the kernel's cache at a time: that of the last lookup. During rename(2) and rmdir(2)
        the kernel keeps the parent locked, so a walk by the other spelling would wait for the handler of that call.
        """
        places = {rootfs_of(id): rootfs_of(walked), diff_of(id): diff_of(walked)}
        self._walked.update(places)
        try:
            with self.closed(*places):
                yield
        finally:
            for place in places:
                self._walked.pop(place, None)

    @contextmanager
    def closed(self, *places: str) -> Generator[None]:
        """Refuse to mount over these places while the block runs, because the caller moves or removes them."""
        self._closed.update(places)
        try:
            yield
        finally:
            self._closed.subtract(places)

    async def is_gone(self, place: str) -> bool:
        """Forget the mount at the place if another process has unmounted it; return whether it had."""
        mark = self._mounted.get(place)
        if mark is None:
            return False
        if await trio.to_thread.run_sync(self._is_mounted, self.path(place), limiter=self._unmounting):
            return False
        self._forget(place, mark)
        return place not in self._mounted

    async def check_only_here(self, place: str) -> None:
        """Raise Busy if a writable mount at the place is also mounted elsewhere for longer than PASSING_SECONDS."""
        await self._elsewhere.unmount(place)
        path, deadline, pause = self.path(place), trio.current_time() + PASSING_SECONDS, _POLL_FIRST
        while await trio.to_thread.run_sync(self._copied, {path}, limiter=self._unmounting):
            if trio.current_time() > deadline:
                raise Busy(f"{place}: is mounted elsewhere too, by a bind or in another mount namespace; end that")
            await trio.sleep(pause)
            pause = min(2 * pause, _POLL_MOST)

    def passes_again(self, place: str, process: int) -> bool:
        """Whether the process came to the directory beneath this mount twice, with no other process in between.

        The first time, its path walk may have passed while the mount was made; its next walk enters the mount.
        """
        before, self._passed_by[place] = self._passed_by.get(place), process
        return before == process

    async def bind_beneath(self, place: str, process: int) -> str | None:
        """Return where the process sees a bind mount, of the place's directory or one above, that does not show the
        mount."""
        return await trio.to_thread.run_sync(self._bind_beneath, place, process, limiter=self._unmounting)

    def _bind_beneath(self, place: str, process: int) -> str | None:
        tree = self._kernel.mount_at(self._mountpoint)
        if tree is None:
            return None
        with suppress(OSError):  # the process has ended
            seen = self._kernel.mounts(process)
            covered = {(one.parent, with_colons(one.mountpoint)) for one in seen}
            for bind in seen:
                shown = path_in_mount(bind, f"/{place}")
                is_ours = bind.device == tree.device and bind.number != tree.number
                if is_ours and shown is not None and (bind.number, with_colons(shown)) not in covered:
                    return bind.mountpoint
        return None

    async def expire(self) -> None:
        """Unmount the places that no process has used since the last call and over which nothing else is mounted.

        An overlay that is also mounted elsewhere (by a bind, or in another mount namespace) counts as used: after an
        unmount here it could not be mounted again, because its upper directory can have only one overlay.
        """
        await self._elsewhere.expire()
        paths = {self.path(place) for place in self}
        used = await trio.to_thread.run_sync(self._used, paths, limiter=self._unmounting)
        for place in self:
            mark = self._mounted.get(place)
            if self.path(place) in used or place in self._elsewhere:
                continue
            if await trio.to_thread.run_sync(self._kernel.expire, self.path(place), limiter=self._unmounting):
                self._forget(place, mark)
                _log.info("idle view unmounted", extra={"place": place})

    async def clear(self) -> None:
        """Unmount every place, the latest first. Raises Busy for the first place in use, after the rest is
        unmounted."""
        await self._elsewhere.detach()
        busy: Busy | None = None
        for place in reversed(list(self._mounted)):
            try:
                await self.unmount(place)
            except Busy as error:
                busy = busy or error
            except ImgfsError as error:
                _log.warning("unmounting failed; the mount stays", extra={"place": place, "reason": error.message})
        if busy is not None:
            raise busy

    async def _mount(self, place: str, attach: Attach) -> bool:
        if self._closed[place] > 0:
            raise Busy(f"{place}: is being moved or removed; try again")
        if place in self._mounted:
            return False
        self._mounted[place] = await trio.to_thread.run_sync(
            self._attached, attach, self.path(place), limiter=self._mounting
        )
        return True

    def _take_away(self, place: str, mark: object) -> bool:
        """Unmount the place unless something else is mounted over it; return whether it was unmounted."""
        is_uncovered = self._is_topmost(place, mark)
        if is_uncovered:
            self._kernel.unmount(self.path(place))
        return is_uncovered

    def _is_topmost(self, place: str, mark: object) -> bool:
        """Whether nothing is mounted over the daemon's mount, as far as the kernel reports. That mount may be gone."""
        if not isinstance(mark, int):
            return True
        number = self._kernel.mount_number
        return number(self.path(place)) in (mark, None, number(self._mountpoint))

    def _forget(self, place: str, mark: object) -> None:
        """Forget the mount with that mark. A later mount may have been made there in the meantime, and stays."""
        if self._mounted.get(place) is mark:
            self._mounted.pop(place, None)
            self._passed_by.pop(place, None)

    def _attached(self, attach: Attach, path: str) -> object:
        """Mount, and return a mark of this mount: its unique number if the kernel has one (Linux 6.8)."""
        attach(path)
        return self._kernel.mount_number(path) or object()

    def _is_mounted(self, path: str) -> bool:
        """Return whether anything is mounted at `path`, in either spelling of the path."""
        if self._kernel.mount_at(path):
            return True
        return ":" in path and bool(_spelled(self._kernel.mounts(), {path}))

    def _used(self, paths: Collection[str]) -> set[str]:
        """Return those of `paths` with more than one mount, or with a writable mount that is also mounted elsewhere.

        It reads the tables of mounts, because a path walk into a mount would count as a use.
        """
        counts = Counter(path for path, _ in _spelled(self._kernel.mounts(), paths))
        return {path for path, count in counts.items() if count > 1} | self._copied(paths)

    def _copied(self, paths: Collection[str]) -> set[str]:
        """Return those of `paths` with a writable mount that is also mounted elsewhere."""
        ours = [mount for _, mount in _spelled(self._kernel.mounts(), paths)]
        copied = self._kernel.mounted_elsewhere([mount for mount in ours if mount.filesystem in _WRITABLE])
        return {path for path, _ in _spelled(copied, paths)}


def _spelled(mounts: Iterable[MountEntry], paths: Collection[str]) -> list[tuple[str, MountEntry]]:
    """Return the mounts at `paths`, each with its path.

    The kernel reports the path of a mount as of the last lookup, which may be the colon-free spelling.
    """
    wanted = {with_colons(path): path for path in paths}
    found = [(wanted.get(with_colons(mount.mountpoint)), mount) for mount in mounts]
    return [(path, mount) for path, mount in found if path is not None]


def rootfs_of(id: str) -> str:
    """Return the place of a snapshot's rootfs."""
    return f"snapshots/{id}/rootfs"


def diff_of(id: str) -> str:
    """Return the place of a snapshot's own changes."""
    return f"snapshots/{id}/diff"
