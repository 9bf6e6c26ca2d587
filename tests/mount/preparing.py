"""User snapshots as files: prepare, commit, and a base image for them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgfs.oci.digest import Digest, chain_ids
from imgfs.testing.build import AMD64, image, layer
from imgfs.testing.entries import Dir, File, Hardlink, Symlink
from tests.mount.scene import Scene, serving, until
from tests.support.mounted import Mounted
from tests.support.programs import program

BASE = image(
    [
        layer([Dir("etc"), File("etc/os", b"base\n"), File("etc/gone", b"gone\n"), Dir("srv", mode=0o1777)]),
        layer(
            [
                Dir("", mode=0o711, uid=7, gid=8),
                Dir("data"),
                File("data/file", b"file\n", uid=1000, gid=1001, xattrs={"user.colour": b"red"}),
                Hardlink("data/twin", "data/file"),
                File("data/big", bytes(range(256)) * 1024),
                Symlink("link", "etc/os"),
            ]
        ),
    ],
    platform=AMD64,
)


@dataclass(frozen=True)
class Workshop:
    """snapshots/ of a mount, with a base image in it."""

    scene: Scene

    @property
    def mount(self) -> Mounted:
        """The daemon and its tree."""
        return self.scene.mount

    @property
    def base(self) -> Digest:
        """The base image's chain ID."""
        return chain_ids(BASE.diff_ids)[-1]

    def at(self, id: str) -> Path:
        """Return the path snapshots/<id>."""
        return self.mount.snapshots / id

    def active(self, key: str) -> Path:
        """Return the path snapshots/active/<key>."""
        return self.at(f"active/{key}")

    def prepare(self, key: str, parent: str | None = None) -> Path:
        """Make the directory and the link to the parent. Returns the rootfs."""
        return prepare(self.mount, key, parent)

    def commit(self, key: str, name: str) -> Path:
        """Commit by renaming. Returns the committed rootfs."""
        return commit(self.mount, key, name)

    def make(self, name: str, parent: str | None = None, **files: str) -> Path:
        """Make a committed snapshot with these files at its top. Returns its rootfs."""
        root = self.prepare(f"for-{name}", parent)
        for file, text in files.items():
            (root / file).write_text(text)
        return self.commit(f"for-{name}", name)


def prepare(mount: Mounted, key: str, parent: str | None = None) -> Path:
    """Make snapshots/active/<key> and the link to the parent. Returns the rootfs."""
    made = mount.snapshots / "active" / key
    made.mkdir()
    if parent is not None:
        (made / "parent").symlink_to(f"../../{parent}")
    return made / "rootfs"


def commit(mount: Mounted, key: str, name: str) -> Path:
    """Rename snapshots/active/<key> to snapshots/<name>. Returns the committed rootfs."""
    os.rename(mount.snapshots / "active" / key, mount.snapshots / name)
    return mount.snapshots / name / "rootfs"


@contextmanager
def workshop(directory: Path) -> Generator[Workshop]:
    """A mount that has pulled the base image."""
    with serving(directory) as scene:
        add_base(scene)
        yield Workshop(scene)


def add_base(scene: Scene) -> None:
    """Store the base image with its layers, durably."""
    name = scene.serve(BASE, "base")
    (name / "pull").read_bytes()
    os.listdir(f"{name}/rootfs/")


def children(path: Path) -> list[str]:
    """Return user.imgfs.children, one ID a line."""
    return os.getxattr(path, "user.imgfs.children").decode(errors="surrogateescape").split()


def kind(path: Path) -> str:
    """Return user.imgfs.kind."""
    return os.getxattr(path, "user.imgfs.kind").decode()


def mount_table() -> str:
    """Return the mount table. Its names are bytes."""
    return Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")


def digest_of(layer: Path) -> str:
    """Return the digest of a file, read in order."""
    with layer.open("rb", buffering=0) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


@contextmanager
def small_disk(directory: Path, size: int) -> Generator[Path]:
    """An ext4 of `size` bytes on a loop device, mounted below `directory`."""
    picture, disk = directory / "disk.ext4", directory / "disk"
    with picture.open("wb") as file:
        file.truncate(size)
    disk.mkdir()
    subprocess.run([program("mkfs.ext4"), "-q", "-m", "0", picture], check=True)
    subprocess.run(["mount", "-o", "loop", picture, disk], check=True)
    try:
        yield disk
    finally:
        unmount(disk)


def unmount(disk: Path, *flags: str) -> None:
    """Unmount. Retries, because the kernel may hold the mount for a moment after its last process has exited."""
    until(lambda: subprocess.run([program("umount"), *flags, disk], check=False).returncode == 0)
