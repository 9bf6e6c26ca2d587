"""Check and repair while a daemon runs: concurrent changes are not damage, and readers continue during repairs."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.lock import locked
from imgfs.testing.build import image
from imgfs.testing.faults import status
from imgfs.testing.images import File, layer
from tests.check.scene import HARMS, MADE, Damage, put_back
from tests.check.test_check import place_of
from tests.mount.scene import refused
from tests.support.mounted import Mounted

MENDED = [
    *(("blobs/*/*/*", harm) for harm in ("cut", "flip")),
    *(("layers/*/*/tar", harm) for harm in HARMS),
    *(("layers/*/*/index", harm) for harm in ("cut", "flip")),
    *(("views/*.erofs", harm) for harm in ("cut", "flip")),
    *(("ingest/*/meta", harm) for harm in HARMS),
    ("ingest/*/data", "delete"),
    *(("imgfs.copy", harm) for harm in ("cut", "flip")),
]


@pytest.fixture(scope="module")
def shared(furnished: Damage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damage]:
    """A mounted copy, shared by the tests that leave its content unchanged."""
    with Mounted(tmp_path_factory.mktemp("shared")) as mounted:
        put_back(furnished.state, mounted.state)
        mounted.start()
        yield Damage(mounted, furnished.registry)


@pytest.fixture
def fresh(unmounted: Damage) -> Damage:
    """A mounted copy for one test."""
    unmounted.mounted.start()
    return unmounted


@pytest.mark.parametrize(("pattern", "harm"), MENDED)
def test_the_daemon_repairs_damaged_files(shared: Damage, pattern: str, harm: str) -> None:
    path = shared.only(pattern)
    # Damage a new file and move it into place: the daemon may still use the pages of the old file.
    harmed = path.with_name("harmed")
    shutil.copy2(path, harmed)
    HARMS[harm](harmed)
    path.unlink()
    if harmed.exists():
        harmed.rename(path)
    place = place_of(shared.state, path)
    assert shared.damaged("--deep") == [place]
    code, report = shared.run("repair", "--deep")
    assert (code, [one["path"] for one in report]) == (0, [place]), report
    assert shared.damaged("--deep") == []
    shared.assert_served()


def test_concurrent_changes_are_not_reported_as_damage(shared: Damage) -> None:
    """Check and repair run while another thread pulls, writes, removes blobs and makes snapshots in a loop."""
    ending = threading.Event()
    failures: list[BaseException] = []

    def bustle() -> None:
        number = 0
        try:
            while not ending.is_set():
                number += 1
                made = image([layer([File(f"f{number}", os.urandom(50_000))])])
                made.add_to(shared.registry, f"busy{number}", "1")
                (shared.mounted.path / f"images/{shared.registry.host}/busy{number}:1/pull").read_bytes()
                (shared.mounted.content / made.layers[0].digest).unlink(missing_ok=True)
                ingest = shared.mounted.path / "content/ingest/busy"
                ingest.write_bytes(b"x" * 1000)
                active = shared.mounted.snapshots / f"active/busy{number}"
                active.mkdir()
                (active / "rootfs/file").write_text("1")
                active.rmdir()
                ingest.unlink()
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=bustle)
    thread.start()
    try:
        for _ in range(3):
            assert shared.run("check", "--deep") == (0, [])
            assert shared.run("repair", "--deep") == (0, [])
    finally:
        ending.set()
        thread.join()
    assert not failures


def test_a_damaged_blob_without_a_source_is_set_aside_and_reported(shared: Damage) -> None:
    data = b"nobody else has this" * 100
    ingest = shared.mounted.path / "content/ingest/mine"
    ingest.write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    os.rename(ingest, shared.mounted.content / digest)
    path = shared.state / f"blobs/sha256/{digest[7:9]}/{digest[7:]}"
    HARMS["flip"](path)
    code, report = shared.run("repair", "--deep")
    assert (code, report[0]["mended"]) == (6, False)
    assert "no known image mentions it" in report[0]["reason"]
    assert path.with_name(f"{path.name}.damaged").stat().st_size == len(data)
    assert shared.damaged("--deep") == []
    with refused(errno.ENOENT):
        (shared.mounted.content / digest).read_bytes()


def test_a_failing_registry_does_not_stop_other_repairs(fresh: Damage) -> None:
    (fresh.mounted.content / MADE.layers[0].digest).unlink()
    HARMS["flip"](fresh.only("layers/*/*/tar"))
    HARMS["cut"](fresh.only("imgfs.copy"))
    fresh.registry.fault(status(503), times=None)
    code, report = fresh.run("repair", "--deep")
    fresh.registry.reset()
    told = {one["path"]: (one["mended"], bool(one["reason"])) for one in report}
    assert code == 6
    assert told.pop("imgfs.copy") == (True, False)
    assert list(told.values()) == [(False, True)]


def test_the_report_names_mounted_views_of_a_damaged_layer(fresh: Damage) -> None:
    with (fresh.name / "rootfs/etc/one").open("rb"):
        HARMS["flip"](fresh.only("layers/*/*/tar"))
        code, report = fresh.run("repair", "--deep")
        assert (code, len(report)) == (0, 1)
        assert "until they are unmounted" in report[0]["done"]
    fresh.mounted.stop()
    fresh.mounted.start()
    fresh.assert_served()


def test_a_damaged_database_is_left_to_the_next_mount(fresh: Damage) -> None:
    HARMS["cut"](fresh.state / "imgfs.db")
    code, report = fresh.run("repair")
    assert (code, [one["path"] for one in report]) == (6, ["imgfs.db"])
    assert "unmount" in report[0]["reason"]
    fresh.mounted.kill()
    fresh.mounted.start()
    fresh.assert_served()


def test_the_repair_file_changes_nothing_that_is_intact(shared: Damage) -> None:
    door = shared.mounted.path / ".imgfs/repair"
    before, told = sorted(shared.state.rglob("*")), door.read_bytes()
    for place in ("blobs", "../mnt", "", "/etc/passwd", "layers/sha256/../../blobs", "blobs/sha256/aa/bb", "\0"):
        os.setxattr(door, "user.imgfs.repair", place.encode())
    for path in (shared.only("blobs/*/*/*"), shared.only("layers/*/*/tar").parent, shared.only("views/*")):
        os.setxattr(door, "user.imgfs.repair", os.fsencode(path.relative_to(shared.state)))
    assert sorted(shared.state.rglob("*")) == before
    assert door.read_bytes() == told
    for flags in (os.O_WRONLY, os.O_RDWR):
        with refused(errno.EPERM):
            os.open(door, flags)
    with refused(errno.EPERM):
        os.setxattr(door, "user.imgfs.other", b"1")


def test_without_options_check_uses_the_state_of_the_mounted_tree(fresh: Damage) -> None:
    HARMS["cut"](fresh.only("imgfs.copy"))
    done = fresh.mounted.run("check")
    assert (done.returncode, done.stdout.partition(":")[0]) == (6, "imgfs.copy")
    assert fresh.mounted.run("repair").returncode == 0
    assert fresh.mounted.run("check").returncode == 0


def test_a_second_repair_is_refused_as_busy(fresh: Damage, tmp_path: Path) -> None:
    fresh.mounted.stop()
    with locked(fresh.state, "for repair"):
        done = fresh.mounted.run("repair", "--state", str(fresh.state))
    assert (done.returncode, "is in use by pid" in done.stderr) == (7, True)


def test_a_repaired_blob_keeps_its_labels(shared: Damage) -> None:
    digest = MADE.layers[0].digest
    HARMS["flip"](shared.state / f"blobs/sha256/{digest[7:9]}/{digest[7:]}")
    assert shared.run("repair", "--deep")[0] == 0
    shared.assert_served()
