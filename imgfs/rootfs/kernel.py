"""The system calls through which rootfs/ mounts and unmounts, so that a test can record, hold and fail them.

This module owns the list of calls and the host's implementation; imgfs/kernel/ makes the calls. All of them block, and
many walk paths that may lead through the daemon's own tree, so callers make them in threads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from imgfs.kernel import bind, disk, elsewhere, erofs, fuse_overlay, mounts, namespaces, overlay
from imgfs.kernel.mountapi import Detached, clone_mount
from imgfs.kernel.mounts import MountEntry
from imgfs.snapshots.root import RootAttributes, root_of


class Kernel(Protocol):
    """The mount and unmount calls. Their errors are those of imgfs/kernel/, which describes each call."""

    def mounts(self, process: int | None = None) -> list[MountEntry]:
        """Return every mount that a process (by default this one) sees. Raises OSError if that process has ended."""
        ...

    def mounted_elsewhere(self, wanted: Collection[MountEntry]) -> list[MountEntry]:
        """Return the mounts whose filesystem has another mount that outlasts them."""
        ...

    def mount_at(self, path: str) -> MountEntry | None:
        """Return the topmost mount at `path`."""
        ...

    def mounts_below(self, path: str) -> list[MountEntry]:
        """Return the mounts below `path`, deepest first."""
        ...

    def mount_number(self, path: str) -> int | None:
        """Return the unique number of the topmost mount at `path`; None if the kernel has no such numbers."""
        ...

    def mount_namespace(self, process: int) -> int | None:
        """Return the number of the mount namespace of a process; None if the process has ended."""
        ...

    def processes_in(self, namespace: int) -> Iterator[int]:
        """Yield one process for each root directory that processes have in a mount namespace."""
        ...

    def attach_there(self, process: int, source: str, targets: Sequence[str], device: tuple[int, int]) -> None:
        """Mount what is at `source` in this namespace over `targets`, directories of `device`, in the namespace of a
        process.
        """
        ...

    def unmount_there(self, process: int, path: str, *, detach: bool) -> None:
        """Unmount what is at `path` in the namespace of a process. Raises Busy, NotPermitted."""
        ...

    def expire_there(self, process: int, path: str) -> None:
        """Unmount `path` in the namespace of a process if no process has used it since the last call."""
        ...

    def unmount(self, path: str) -> None:
        """Unmount the topmost mount at `path`. Raises Busy, NotFound, NotPermitted."""
        ...

    def expire(self, path: str) -> bool:
        """Unmount `path` if no process has used it since the last call; return whether it is unmounted."""
        ...

    def detached_erofs(self, image: Path, devices: Sequence[Path], *, trusted: bool) -> Detached:
        """Mount a metadata image detached from any tree."""
        ...

    def attach_clone(self, mount: Detached, target: str) -> None:
        """Mount over `target` what a detached mount shows."""
        ...

    def root_of(self, mount: Detached) -> RootAttributes:
        """Return the attributes of the root directory of a detached mount."""
        ...

    def bind(self, source: str, target: str, *, trusted: bool) -> None:
        """Show the directory `source` at `target` too."""
        ...

    def bind_read_only(self, source: str, target: str, *, trusted: bool) -> None:
        """As `bind`, but read-only. `target` may be `source` itself."""
        ...

    def mount_overlay(
        self, lowers: Sequence[str | Detached], target: str, *, upper: Path | None, work: Path | None, trusted: bool
    ) -> None:
        """Mount directories of changes over one another at `target`."""
        ...

    def mount_fuse_overlay(self, lowers: Sequence[str], target: str, upper: Path | None, work: Path | None) -> None:
        """As `mount_overlay`, through fuse-overlayfs, for users who may not mount."""
        ...

    def check_unused(self, upper: Path, lower: Path, subject: str) -> None:
        """Raise Busy while any overlay writes to `upper`."""
        ...


class HostKernel:
    """Implements Kernel with the calls of imgfs/kernel/."""

    def mounts(self, process: int | None = None) -> list[MountEntry]:
        """See Kernel."""
        return mounts.mounts(process)

    def mounted_elsewhere(self, wanted: Collection[MountEntry]) -> list[MountEntry]:
        """See Kernel."""
        return elsewhere.mounted_elsewhere(wanted)

    def mount_at(self, path: str) -> MountEntry | None:
        """See Kernel."""
        return mounts.mount_at(path)

    def mounts_below(self, path: str) -> list[MountEntry]:
        """See Kernel."""
        return mounts.mounts_below(path)

    def mount_number(self, path: str) -> int | None:
        """See Kernel."""
        return disk.mount_number(path)

    def mount_namespace(self, process: int) -> int | None:
        """See Kernel."""
        return namespaces.mount_namespace(process)

    def processes_in(self, namespace: int) -> Iterator[int]:
        """See Kernel."""
        return namespaces.processes_in(namespace)

    def attach_there(self, process: int, source: str, targets: Sequence[str], device: tuple[int, int]) -> None:
        """See Kernel."""
        namespaces.attach_there(process, source, targets, device)

    def unmount_there(self, process: int, path: str, *, detach: bool) -> None:
        """See Kernel."""
        namespaces.unmount_there(process, path, detach=detach)

    def expire_there(self, process: int, path: str) -> None:
        """See Kernel."""
        namespaces.expire_there(process, path)

    def unmount(self, path: str) -> None:
        """See Kernel."""
        mounts.unmount(path)

    def expire(self, path: str) -> bool:
        """See Kernel."""
        return mounts.expire(path)

    def detached_erofs(self, image: Path, devices: Sequence[Path], *, trusted: bool) -> Detached:
        """See Kernel."""
        return erofs.detached_erofs(image, devices, trusted=trusted)

    def attach_clone(self, mount: Detached, target: str) -> None:
        """See Kernel."""
        with clone_mount(mount) as clone:
            clone.attach(target)

    def root_of(self, mount: Detached) -> RootAttributes:
        """See Kernel."""
        return root_of(Path(f"/proc/self/fd/{mount.fileno()}"))

    def bind(self, source: str, target: str, *, trusted: bool) -> None:
        """See Kernel."""
        bind.bind(source, target, trusted=trusted)

    def bind_read_only(self, source: str, target: str, *, trusted: bool) -> None:
        """See Kernel."""
        bind.bind_read_only(source, target, trusted=trusted)

    def mount_overlay(
        self, lowers: Sequence[str | Detached], target: str, *, upper: Path | None, work: Path | None, trusted: bool
    ) -> None:
        """See Kernel."""
        overlay.mount_overlay(lowers, target, upper=upper, work=work, trusted=trusted)

    def mount_fuse_overlay(self, lowers: Sequence[str], target: str, upper: Path | None, work: Path | None) -> None:
        """See Kernel."""
        fuse_overlay.mount_fuse_overlay(lowers, target, upper, work)

    def check_unused(self, upper: Path, lower: Path, subject: str) -> None:
        """See Kernel."""
        overlay.check_unused(upper, lower, subject)


HOST = HostKernel()
