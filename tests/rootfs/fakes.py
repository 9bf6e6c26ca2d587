"""A fake kernel that records mounts and uses, and whose calls can fail or wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from imgfs.errors import Busy, ImgfsError, NotFound
from imgfs.kernel.mounts import MountEntry
from imgfs.snapshots.root import RootAttributes

PATIENCE = 10


class Gate:
    """A gate at which threads wait while it is shut. It is open at first."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        self.reached.set()
        assert self._open.wait(PATIENCE), "the gate was not opened"


class FakeDetached:
    """A detached mount: the tree that it shows, and whether it was closed."""

    def __init__(self, kernel: FakeKernel, shows: str) -> None:
        self.kernel = kernel
        self.shows = shows
        self.is_closed = False

    def __enter__(self) -> FakeDetached:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.is_closed = True

    def fileno(self) -> int:
        assert not self.is_closed, f"{self.shows}: is closed"
        return 0

    def attach(self, target: str) -> None:
        self.kernel.attach(self.shows)(target)


class FakeKernel:
    """A kernel that mounts nothing.

    `mounted`: the filesystem shown at each path. `used`: paths in use, which cannot be unmounted. `elsewhere`: paths
    whose filesystem is also mounted at another place. `gates`: where each call waits before it returns.
    """

    def __init__(self) -> None:
        self.mounted: dict[str, str] = {}
        self.used: set[str] = set()
        self.elsewhere: set[str] = set()
        self.marked: set[str] = set()
        self.calls: list[str] = []
        self.seen: dict[int, list[MountEntry]] = {}
        """The mounts that processes in other mount namespaces see, by process.

        The namespace has the number of its process.
        """
        self.errors: dict[str, ImgfsError] = {}
        """The error that a call raises, by the first word of the call."""
        self.gates = {"attach": Gate(), "unmount": Gate(), "expire": Gate(), "erofs": Gate()}

    def attach(self, shows: str) -> Callable[[str], object]:
        """Return an attachment for Places.mount."""

        def attached(path: str) -> None:
            self._call(f"attach {shows}")
            self.gates["attach"]()
            assert path not in self.mounted, f"{path}: mounted twice"
            self.mounted[path] = shows

        return attached

    def unmount(self, path: str) -> None:
        self._call(f"unmount {path}")
        if path in self.used:
            raise Busy(f"{path}: is in use")
        if self.mounted.pop(path, None) is None:
            raise NotFound(f"{path}: nothing is mounted there")
        self.gates["unmount"]()

    def expire(self, path: str) -> bool:
        is_unused = path in self.marked and path not in self.used
        self.marked.add(path)
        if is_unused:
            self.marked.discard(path)
            self.mounted.pop(path, None)
        is_gone = path not in self.mounted
        self.gates["expire"]()
        return is_gone

    def mount_namespace(self, process: int) -> int | None:
        return process if process in self.seen else None

    def processes_in(self, namespace: int) -> Iterator[int]:
        yield from [process for process in self.seen if process == namespace]

    def attach_there(self, process: int, source: str, targets: Sequence[str], device: tuple[int, int]) -> None:
        self._call(f"attach-there {' '.join(targets)}")
        parents = {target: one for one in self.seen[process] for target in targets if target.startswith(one.mountpoint)}
        for target, parent in parents.items():
            number = 100 + len(self.seen[process])
            self.seen[process].append(MountEntry(target, self.mounted[source], "", (0, 9), number, parent.number))

    def unmount_there(self, process: int, path: str, *, detach: bool) -> None:
        self._call(f"{'detach' if detach else 'unmount'}-there {path}")
        self.seen[process] = [one for one in self.seen[process] if one.mountpoint != path]

    def expire_there(self, process: int, path: str) -> None:
        self.unmount_there(process, path, detach=False)

    def mounts(self, process: int | None = None) -> list[MountEntry]:
        if process in self.seen:
            return list(self.seen[process])
        return [MountEntry(path, shows.partition(" ")[0], "", (0, 0), 1, 0) for path, shows in self.mounted.items()]

    def mounted_elsewhere(self, wanted: Collection[MountEntry]) -> list[MountEntry]:
        return [one for one in wanted if one.mountpoint in self.elsewhere]

    def mount_at(self, path: str) -> MountEntry | None:
        return next((one for one in self.mounts() if one.mountpoint == path), None)

    def mounts_below(self, path: str) -> list[MountEntry]:
        return [one for one in self.mounts() if one.mountpoint.startswith(f"{path}/")]

    def mount_number(self, path: str) -> None:
        """Return None, as before Linux 6.8."""

    def detached_erofs(self, image: Path, devices: Sequence[Path], *, trusted: bool) -> FakeDetached:
        self._call(f"erofs {image.name} {' '.join('local' if '/fd/' in str(one) else 'door' for one in devices)}")
        self.gates["erofs"]()
        return FakeDetached(self, f"erofs {image.name}")

    def mount_overlay(
        self,
        lowers: Sequence[str | FakeDetached],
        target: str,
        *,
        upper: Path | None,
        work: Path | None,
        trusted: bool,
    ) -> None:
        below = [one if isinstance(one, str) else f"{one.shows} {one.fileno()}" for one in lowers]
        self._call(f"overlay {below[-1]}")
        self.attach(f"overlay {below[-1]}")(target)

    def attach_clone(self, mount: FakeDetached, target: str) -> None:
        mount.fileno()
        self.attach(mount.shows)(target)

    def bind(self, source: str, target: str, *, trusted: bool) -> None:
        self._call(f"bind {source}")
        self.attach("bind")(target)

    def bind_read_only(self, source: str, target: str, *, trusted: bool) -> None:
        self._call(f"bind {source}")
        self.attach("bind")(target)

    def mount_fuse_overlay(self, lowers: Sequence[str], target: str, upper: Path | None, work: Path | None) -> None:
        self._call(f"fuse-overlayfs {lowers[-1]}")
        self.attach(f"fuse-overlayfs {lowers[-1]}")(target)

    def check_unused(self, upper: Path, lower: Path, subject: str) -> None:
        """No other overlay writes to the directory."""

    def root_of(self, mount: FakeDetached) -> RootAttributes:
        return RootAttributes(0o755, 0, 0, 0, ())

    def _call(self, call: str) -> None:
        self.calls.append(call)
        if error := self.errors.get(call.partition(" ")[0]):
            raise error
