"""A tar whose sync failed: its readers get an error and never the bytes on disk.

The next path walk fetches it again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.testing.images import File, image, layer
from tests.mount.scene import Scene, refused, serving, until
from tests.mount.test_ingest_crashes import failing

FIRST, LAST = os.urandom(4 << 20), os.urandom(300_000)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("lost")) as made:
        yield made


def without_cache() -> None:
    """Drop the page cache, as the kernel may do at any time."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_nobody_reads_what_the_disk_has_instead(scene: Scene) -> None:
    name = scene.serve(image([layer([File("first", FIRST), File("last", LAST)])]), "lost")
    rootfs = name / "rootfs"
    assert (name / "config.json").read_bytes()
    with failing(scene.mount, "fsync", "EIO"):
        file = os.open(rootfs / "first", os.O_RDONLY)
        assert os.pread(file, 1000, 0) == FIRST[:1000]
        until(lambda: "Input/output error" in os.getxattr(name, "user.imgfs.error").decode())
    without_cache()
    with refused(errno.EIO):
        os.pread(file, 1000, len(FIRST) - 1000)
    os.close(file)
    until(lambda: (rootfs / "last").read_bytes() == LAST)
    assert (rootfs / "first").read_bytes() == FIRST
