"""Two access paths to the snapshotter behind one protocol: calls of the library, and files of a mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imgfs.snapshots import Snapshots, open_snapshots
from tests.contract.portal import Portal
from tests.mount.preparing import Workshop, children, workshop

_LABEL = "user.label."


@dataclass(frozen=True)
class Told:
    """Facts of a snapshot; `parent` is an ID."""

    kind: str
    parent: str | None


class SnapshotDoor(Protocol):
    """The operations that both access paths support. IDs are names and `active/<key>`.

    A failure is an OSError or an ImgfsError, with the same errno. `base` is a committed snapshot on another one, with
    the files of BASE in tests/mount/preparing.py.
    """

    base: str

    def prepare(self, key: str, parent: str | None = None) -> None: ...
    def commit(self, key: str, name: str) -> None: ...
    def view(self, name: str, target: str) -> None: ...
    def remove(self, id: str) -> None: ...
    def rootfs(self, id: str) -> Path: ...
    def stat(self, id: str) -> Told: ...
    def walk(self) -> dict[str, Told]: ...
    def children(self, id: str) -> list[str]: ...
    def usage(self, id: str) -> int: ...
    def labels(self, id: str) -> dict[str, bytes]: ...
    def update(self, id: str, labels: Mapping[str, bytes | None]) -> None: ...
    def restart(self) -> None: ...


class LibraryDoor:
    """Access through `open_snapshots`. Snapshots are mounted below another directory before a test reads them."""

    base = "base"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mounted: dict[str, tuple[Path, AbstractAsyncContextManager[Path]]] = {}
        self._number = 0
        self._open()
        self._make_base()

    def _open(self) -> None:
        self._portal = Portal(open_snapshots(self._directory / "state"))
        self._portal.__enter__()

    def close(self) -> None:
        for id in list(self._mounted):
            self._unmount(id)
        self._portal.__exit__()

    def restart(self) -> None:
        self.close()
        self._open()

    @property
    def _snapshots(self) -> Snapshots:
        return self._portal.value

    def prepare(self, key: str, parent: str | None = None) -> None:
        self._portal.call(self._snapshots.prepare, key, parent)

    def commit(self, key: str, name: str) -> None:
        self._unmount(f"active/{key}")
        self._portal.call(self._snapshots.commit, key, name)

    def view(self, name: str, target: str) -> None:
        self._portal.call(self._snapshots.view, name, target)

    def remove(self, id: str) -> None:
        self._unmount(id)
        self._portal.call(self._snapshots.remove, id)

    def rootfs(self, id: str) -> Path:
        if id not in self._mounted:
            self._number += 1
            target = self._directory / f"rootfs-{self._number}"
            target.mkdir()
            mounted = self._snapshots.mounted(id, target)
            self._portal.call(mounted.__aenter__)
            self._mounted[id] = target, mounted
        return self._mounted[id][0]

    def stat(self, id: str) -> Told:
        found = self._portal.call_now(self._snapshots.stat, id)
        return Told(found.kind.value, found.parent)

    def walk(self) -> dict[str, Told]:
        found = self._portal.call_now(lambda: list(self._snapshots.walk()))
        return {info.id: Told(info.kind.value, info.parent) for info in found}

    def children(self, id: str) -> list[str]:
        return self._portal.call_now(self._snapshots.children, id)

    def usage(self, id: str) -> int:
        return self._portal.call(self._snapshots.usage, id).bytes

    def labels(self, id: str) -> dict[str, bytes]:
        return dict(self._portal.call_now(self._snapshots.stat, id).labels)

    def update(self, id: str, labels: Mapping[str, bytes | None]) -> None:
        self._portal.call(self._snapshots.update, id, labels)

    def _unmount(self, id: str) -> None:
        if id in self._mounted:
            _, mounted = self._mounted[id]
            self._portal.call(mounted.__aexit__, None, None, None)
            del self._mounted[id]

    def _make_base(self) -> None:
        self.prepare("low")
        root = self.rootfs("active/low")
        for name in ("etc", "srv"):
            (root / name).mkdir()
        (root / "etc/os").write_text("base\n")
        (root / "etc/gone").write_text("gone\n")
        (root / "srv").chmod(0o1777)
        self.commit("low", "base-low")
        self.prepare("high", "base-low")
        root = self.rootfs("active/high")
        (root / "data").mkdir()
        (root / "data/file").write_text("file\n")
        os.chown(root / "data/file", 1000, 1001)
        os.setxattr(root / "data/file", "user.colour", b"red")
        os.link(root / "data/file", root / "data/twin")
        (root / "data/big").write_bytes(bytes(range(256)) * 1024)
        (root / "link").symlink_to("etc/os")
        os.chown(root, 7, 8)
        root.chmod(0o711)
        self.commit("high", "base")


class FilesDoor:
    """Access through the directory snapshots/ of a mount that has pulled the base image."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self.base = str(shop.base)

    def restart(self) -> None:
        self._shop.mount.stop()
        self._shop.mount.start()

    def prepare(self, key: str, parent: str | None = None) -> None:
        self._shop.prepare(key, parent)

    def commit(self, key: str, name: str) -> None:
        self._shop.commit(key, name)

    def view(self, name: str, target: str) -> None:
        self._shop.at(name).symlink_to(target)

    def remove(self, id: str) -> None:
        path = self._shop.at(id)
        path.unlink() if path.is_symlink() else path.rmdir()

    def rootfs(self, id: str) -> Path:
        return self._shop.at(id) / "rootfs"

    def stat(self, id: str) -> Told:
        path = self._shop.at(id)
        if stat.S_ISLNK(path.lstat().st_mode):
            return Told("view", os.readlink(path))
        kind = os.getxattr(path, "user.imgfs.kind").decode()
        parent = path / "parent"
        return Told(kind, os.readlink(parent).removeprefix("../").removeprefix("../") if parent.is_symlink() else None)

    def walk(self) -> dict[str, Told]:
        names = [name for name in os.listdir(self._shop.mount.snapshots) if name != "active"]
        keys = os.listdir(self._shop.at("active"))
        return {id: self.stat(id) for id in [*names, *(f"active/{key}" for key in keys)]}

    def children(self, id: str) -> list[str]:
        return children(self._shop.at(id))

    def usage(self, id: str) -> int:
        return int(os.getxattr(self._shop.at(id), "user.imgfs.usage"))

    def labels(self, id: str) -> dict[str, bytes]:
        path = self._shop.at(id)
        names = [name for name in os.listxattr(path) if name.startswith(_LABEL)]
        return {name.removeprefix(_LABEL): os.getxattr(path, name) for name in names}

    def update(self, id: str, labels: Mapping[str, bytes | None]) -> None:
        path = self._shop.at(id)
        for key, value in labels.items():
            if value is not None:
                os.setxattr(path, _LABEL + key, value)
            elif key in self.labels(id):
                os.removexattr(path, _LABEL + key)


@contextmanager
def _by_calls(directory: Path) -> Generator[SnapshotDoor]:
    door = LibraryDoor(directory)
    try:
        yield door
    finally:
        door.close()


@contextmanager
def _by_files(directory: Path) -> Generator[SnapshotDoor]:
    with workshop(directory) as shop:
        yield FilesDoor(shop)


DOORS: dict[str, Callable[[Path], AbstractContextManager[SnapshotDoor]]] = {"library": _by_calls, "files": _by_files}
