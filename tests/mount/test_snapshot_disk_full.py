"""The state directory's disk fills up under writable snapshots: ENOSPC, then normal operation once space is free."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from imgfs.execution.records.records import ContainerRecords
from imgfs.testing.registry import FakeRegistry
from tests.mount.preparing import Workshop, add_base, digest_of, kind, small_disk
from tests.mount.scene import Scene, error_of, refused, succeed
from tests.support.containers import fabricated, stopped
from tests.support.mounted import Mounted

SIZE = 24 << 20


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    """A mount whose state directory is on its own small disk."""
    with small_disk(tmp_path, SIZE) as disk, FakeRegistry() as registry, Mounted(tmp_path) as mount:
        mount.state = disk / "state"
        mount.start()
        scene = Scene(registry, mount)
        add_base(scene)
        yield Workshop(scene)


def fill(path: Path) -> None:
    """Write zeros to a new file until the disk accepts not one byte more."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while os.write(file, bytes(size)):
                    pass
        with refused(errno.ENOSPC):
            os.write(file, b"x")
            os.fsync(file)
            os.write(file, bytes(4096))
    finally:
        os.close(file)


def attempt(change: Callable[[], object]) -> bool:
    """Return whether there was space for it."""
    try:
        change()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def filler(shop: Workshop) -> Path:
    return shop.mount.state.parent / "filler"


def test_a_full_disk_is_enospc_for_writers_and_the_snapshot_stays(shop: Workshop) -> None:
    root = shop.prepare("writer", shop.base)
    (root / "before").write_text("1")
    fill(root / "big")
    with refused(errno.ENOSPC):
        (root / "etc/os").write_bytes(bytes(1 << 20))
    assert (root / "before").read_text() == "1"
    assert (root / "data/file").read_text() == "file\n"
    os.unlink(root / "big")
    (root / "after").write_bytes(bytes(1 << 20))
    assert (root / "after").stat().st_size == 1 << 20
    assert (shop.commit("writer", "written") / "before").read_text() == "1"


def test_a_failed_prepare_leaves_nothing(shop: Workshop) -> None:
    before = sorted((shop.mount.state / "snapshots").iterdir())
    fill(filler(shop))
    with refused(errno.ENOSPC):
        for number in range(1000):
            shop.active(f"key-{number}").mkdir()
    made = os.listdir(shop.at("active"))
    assert len(list((shop.mount.state / "snapshots").iterdir())) == len(before) + len(made)
    for key in made:
        succeed("rmdir", shop.active(key))
    assert sorted((shop.mount.state / "snapshots").iterdir()) == before
    filler(shop).unlink()
    (shop.prepare("key", shop.base) / "file").write_text("1")


def test_removal_works_on_a_full_disk_and_frees_space(shop: Workshop) -> None:
    for key in ("one", "two"):
        (shop.prepare(key, shop.base) / "file").write_bytes(os.urandom(1 << 20))
    shop.commit("two", "two")
    fill(filler(shop))
    succeed("rmdir", shop.active("one"))
    succeed("rmdir", shop.at("two"))
    succeed("rm", shop.scene.name("base"))
    assert os.listdir(shop.at("active")) == []
    free = os.statvfs(shop.mount.state)
    assert free.f_bavail * free.f_bsize > 1 << 20
    shop.mount.stop()
    shop.mount.start()
    assert os.listdir(shop.at("active")) == []
    assert not shop.at("two").exists()


def test_a_commit_refused_by_a_full_disk_succeeds_later(shop: Workshop) -> None:
    root = shop.prepare("work", shop.base)
    (root / "file").write_text("1")
    os.listdir(root)
    fill(filler(shop))
    if not attempt(lambda: shop.commit("work", "done")):
        assert "room" in error_of(shop.active("work"))
        assert (root / "file").read_text() == "1"
        filler(shop).unlink()
        shop.commit("work", "done")
    assert kind(shop.at("done")) == "committed"
    digest = digest_of(shop.at("done") / "layer.tar")
    shop.mount.kill()
    shop.mount.start()
    assert digest_of(shop.at("done") / "layer.tar") == digest


def test_an_export_needs_no_space(shop: Workshop) -> None:
    shop.make("exported", shop.base, file="1")
    digest = digest_of(shop.at("exported") / "layer.tar")
    fill(filler(shop))
    assert digest_of(shop.at("exported") / "layer.tar") == digest


def test_the_daemon_starts_on_a_full_disk_and_shows_everything(shop: Workshop) -> None:
    (shop.prepare("active", shop.base) / "file").write_text("1")
    shop.make("committed", shop.base, file="2")
    shop.mount.stop()
    fill(filler(shop))
    shop.mount.start()
    assert (shop.active("active") / "rootfs/file").read_text() == "1"
    assert (shop.at("committed") / "rootfs/file").read_text() == "2"
    succeed("rmdir", shop.active("active"))


def test_a_container_can_be_deleted_on_a_full_disk_and_is_reported(shop: Workshop) -> None:
    records = ContainerRecords(shop.mount.state)
    (shop.prepare("full", shop.base) / "big").write_bytes(bytes(1 << 20))
    fabricated(records, "full", stopped(3)).log.write_bytes(bytes(1 << 16))
    fill(filler(shop))
    os.rmdir(shop.mount.path / "containers/full")
    assert json.loads((shop.mount.path / ".imgfs/deleted/containers/full").read_bytes())["exit_code"] == 3
    assert os.listdir(shop.active("full").parent) == []
