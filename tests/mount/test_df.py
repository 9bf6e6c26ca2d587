"""df on the tree shows the state directory's disk, limited by the quota."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from imgfs.testing.registry import FakeRegistry
from tests.mount.ingesting import blob_of
from tests.mount.preparing import Workshop, add_base, small_disk
from tests.mount.scene import CONFIG, Scene, succeed
from tests.support.mounted import Mounted

SIZE = 64 << 20
QUOTA = 16 << 20
MIB = 1 << 20


@contextmanager
def on_a_disk(directory: Path, config: str = "") -> Generator[Workshop]:
    with small_disk(directory, SIZE) as disk, FakeRegistry() as registry, Mounted(directory) as mount:
        mount.state = disk / "state"
        mount.state.mkdir(mode=0o700)
        (mount.state / "imgfs.toml").write_text(CONFIG + config)
        mount.start()
        yield Workshop(Scene(registry, mount))


def df(path: Path, *fields: str) -> list[int]:
    """Return what df(1) prints for the filesystem at `path`, in bytes or files."""
    return [int(word) for word in succeed("df", "-B1", f"--output={','.join(fields)}", path).splitlines()[1].split()]


def test_without_a_quota_it_says_what_the_state_directory_says(tmp_path: Path) -> None:
    fields = "size", "used", "avail", "itotal", "iused", "iavail"
    with on_a_disk(tmp_path) as shop:
        mount = shop.mount
        for path in (mount.path, mount.path / "images", mount.content, mount.path / ".imgfs/log"):
            assert df(path, *fields) == df(mount.state, *fields)
        before = os.statvfs(mount.path)
        blob_of(mount.content / "ingest/new", os.urandom(4 * MIB))
        after = os.statvfs(mount.path)
        assert (before.f_bavail - after.f_bavail) * after.f_frsize >= 4 * MIB
        assert after.f_ffree < before.f_ffree
        assert df(mount.path, *fields) == df(mount.state, *fields)


def test_under_a_quota_it_is_as_large_as_that_and_used_is_what_counts(tmp_path: Path) -> None:
    with on_a_disk(tmp_path, f"quota_bytes = {QUOTA}\n") as shop:
        mount = shop.mount
        size, before = df(mount.path, "size", "used")
        assert size == QUOTA
        assert before < MIB
        blob = blob_of(mount.content / "ingest/new", os.urandom(4 * MIB))
        size, used, available = df(mount.path, "size", "used", "avail")
        assert (size, available) == (QUOTA, QUOTA - used)
        assert 4 * MIB <= used - before < 5 * MIB
        add_base(shop.scene)
        assert df(mount.path, "used")[0] > used
        blob.unlink()
        assert df(mount.path, "used")[0] < 2 * MIB
        (mount.state.parent / "others").write_bytes(os.urandom(50 * MIB))
        assert df(mount.path, "avail") == df(mount.state, "avail") != [QUOTA]


def test_what_is_kept_free_is_not_available(tmp_path: Path) -> None:
    with on_a_disk(tmp_path, f"free_space_bytes = {8 * MIB}\n") as shop:
        assert df(shop.mount.path, "size", "used") == df(shop.mount.state, "size", "used")
        assert df(shop.mount.path, "avail")[0] == df(shop.mount.state, "avail")[0] - 8 * MIB


def test_a_writable_rootfs_says_what_its_changes_may_take(tmp_path: Path) -> None:
    with on_a_disk(tmp_path, f"quota_bytes = {QUOTA}\n") as shop:
        add_base(shop.scene)
        root = shop.prepare("work", shop.base)
        (root / "file").write_bytes(os.urandom(2 * MIB))
        fields = "size", "used", "avail", "itotal", "iavail"
        assert df(root, *fields) == df(shop.mount.state, *fields)
        assert df(shop.at(f"{shop.base}/rootfs"), "avail") == [0]
