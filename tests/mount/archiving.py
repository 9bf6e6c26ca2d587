"""Archives of other people's tools beside a mount, and imgfs's own commands on them."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

from imgfs.testing.images import File, Image, image, layer
from tests.mount.scene import Scene
from tests.support.mounted import IMGFS, PATIENCE
from tests.support.programs import run as run_program


def packed(mark: str, size: int = 2000) -> Image:
    """An image of a gzip'd, a plain and a zstd layer that no other `mark` shares."""
    noise = random.Random(mark).randbytes(size)
    return image(
        [
            layer([File("mark", mark.encode())]),
            layer([File("noise", noise)], "none"),
            layer([File("top", mark.encode() * 100)], "zstd"),
        ]
    )


def gzipped(mark: str) -> Image:
    """As `packed`, with what other people's tools can repack."""
    return image([layer([File("mark", mark.encode())]), layer([File("plain", mark.encode() * 900)], "none")])


def skopeo(*arguments: str | Path) -> bytes:
    return run_program("skopeo", "--insecure-policy", *arguments)


def imgfs(scene: Scene, *arguments: str | Path, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command; `data` is its stdin."""
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mount.path)}
    return subprocess.run(
        [*IMGFS, *map(str, arguments)], input=data, capture_output=True, check=False, timeout=PATIENCE, env=environment
    )


def done(scene: Scene, *arguments: str | Path, data: bytes | None = None) -> str:
    """As `imgfs`, of a command that succeeds without a word on stderr; what it prints."""
    ended = imgfs(scene, *arguments, data=data)
    assert (ended.returncode, ended.stderr) == (0, b"")
    return ended.stdout.decode()


def names(scene: Scene) -> set[str]:
    return set(done(scene, "ls", "-q").split())


def leases(scene: Scene) -> list[str]:
    return os.listdir(scene.mount.path / ".imgfs/leases")


def unfinished(scene: Scene) -> list[str]:
    return sorted(name for name in os.listdir(scene.mount.content / "ingest") if name.startswith("import-"))
