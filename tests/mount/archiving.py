"""Images, skopeo and imgfs commands for the tests of import and export."""

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
    """Return an image with a gzip, an uncompressed and a zstd layer. Images of different marks share no layer."""
    noise = random.Random(mark).randbytes(size)
    return image(
        [
            layer([File("mark", mark.encode())]),
            layer([File("noise", noise)], "none"),
            layer([File("top", mark.encode() * 100)], "zstd"),
        ]
    )


def gzipped(mark: str) -> Image:
    """Return an image without a zstd layer, which skopeo and umoci can repack."""
    return image([layer([File("mark", mark.encode())]), layer([File("plain", mark.encode() * 900)], "none")])


def skopeo(*arguments: str | Path) -> bytes:
    return run_program("skopeo", "--insecure-policy", *arguments)


def imgfs(scene: Scene, *arguments: str | Path, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run an imgfs command with `data` on stdin, and do not check its exit code."""
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mount.path)}
    return subprocess.run(
        [*IMGFS, *map(str, arguments)], input=data, capture_output=True, check=False, timeout=PATIENCE, env=environment
    )


def done(scene: Scene, *arguments: str | Path, data: bytes | None = None) -> str:
    """Run an imgfs command that succeeds with an empty stderr, and return its output."""
    ended = imgfs(scene, *arguments, data=data)
    assert (ended.returncode, ended.stderr) == (0, b"")
    return ended.stdout.decode()


def names(scene: Scene) -> set[str]:
    return set(done(scene, "ls", "-q").split())


def leases(scene: Scene) -> list[str]:
    return os.listdir(scene.mount.path / ".imgfs/leases")


def unfinished(scene: Scene) -> list[str]:
    return sorted(name for name in os.listdir(scene.mount.content / "ingest") if name.startswith("import-"))
