"""Copies of layers in content/ingest/ during a pull: kept over kills and power cuts, and removable."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.content.ingests.refs import ref_id
from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import stall
from imgfs.testing.registry import FakeRegistry
from tests.mount.preparing import small_disk
from tests.mount.scene import CONFIG, PATIENCE, Scene, assert_verified, refused, serving, succeed, until
from tests.mount.test_crowds import waiting
from tests.mount.test_ingest_crashes import PIECE, ingest, noise, write
from tests.support.mounted import Mounted

HELD = 1_700_000
"""Bytes of a layer after which its registry stalls."""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with serving(tmp_path) as made:
        yield made


class Case:
    """An image of one layer at the registry, and the path of its copy."""

    def __init__(self, scene: Scene, mark: str, pieces: int = 3) -> None:
        self.scene = scene
        self.data = noise(mark, pieces * PIECE)
        self.made: Image = image([layer([File("noise", self.data)], "gzip")], platform=AMD64)
        self.layer = self.made.layers[0]
        self.name = scene.serve(self.made, mark)
        self.ref = ingest(scene) / f"layer-{self.layer.digest}"
        os.stat(self.name)

    def pulling(self) -> subprocess.Popen[str]:
        return subprocess.Popen(["cat", self.name / "pull"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stalled(self, after: int = HELD) -> None:
        self.scene.registry.fault(stall(after), f"GET.*{self.layer.digest}")

    def arrived(self, least: int = HELD - PIECE // 2) -> int:
        """Wait until the copy has that many bytes. Returns its size."""
        return until(lambda: self.ref.exists() and self.ref.stat().st_size >= least and self.ref.stat().st_size)

    def asked(self) -> list[str | None]:
        return [one.range for one in self.scene.registry.log if one.path.endswith(self.layer.digest)]

    def from_byte(self, start: int) -> str:
        return f"bytes={start}-{len(self.layer.blob) - 1}"

    def pull(self) -> None:
        """Pull the image, and assert that it is complete and right and that no copy is left."""
        (self.name / "pull").read_bytes()
        assert (self.name / "rootfs/noise").read_bytes() == self.data
        assert not self.ref.exists()
        assert_verified(self.scene.mount.state)

    def killed(self) -> int:
        """Kill the daemon in the middle of the layer. Returns the bytes that it kept."""
        self.stalled()
        with self.pulling() as puller:
            self.arrived()
            self.scene.mount.kill()
            assert puller.wait() != 0
        self.scene.registry.release()
        return self.kept("data").stat().st_size

    def kept(self, name: str) -> Path:
        """Return a file of the copy in the state directory."""
        return self.scene.mount.state / "ingest" / ref_id(self.ref.name) / name


def test_it_is_seen_like_any_ingest(scene: Scene) -> None:
    case = Case(scene, "seen")
    case.stalled()
    with case.pulling() as puller:
        come = case.arrived()
        assert case.ref.name in os.listdir(case.ref.parent)
        assert os.getxattr(case.ref, "user.imgfs.total") == str(len(case.layer.blob)).encode()
        assert os.getxattr(case.ref, "user.imgfs.expected") == case.layer.digest.encode()
        assert os.getxattr(case.ref, "user.imgfs.digest").startswith(b"sha256:")
        with refused(errno.EBUSY):
            os.open(case.ref, os.O_WRONLY | os.O_TRUNC)
        with refused(errno.EBUSY):
            os.rename(case.ref, scene.blob(case.layer.digest))
        assert come <= case.ref.stat().st_size <= HELD
        scene.registry.release()
        assert puller.wait(timeout=20) == 0
    case.pull()
    assert case.asked() == [None]
    assert not list(scene.mount.state.glob("ingest/*"))


def test_who_reads_the_blob_meanwhile_gets_the_bytes_that_come(scene: Scene) -> None:
    case = Case(scene, "read")
    case.stalled()
    with case.pulling() as puller:
        case.arrived()
        with subprocess.Popen(["cat", scene.blob(case.layer.digest)], stdout=subprocess.PIPE) as reader:
            until(lambda: waiting(scene) == 2)
            scene.registry.release()
            assert reader.communicate(timeout=PATIENCE)[0] == case.layer.blob
        assert puller.wait(timeout=PATIENCE) == 0
    case.pull()
    assert case.asked() == [None]


def test_after_a_kill_it_goes_on_by_range(scene: Scene) -> None:
    case = Case(scene, "killed")
    kept = case.killed()
    scene.mount.start()
    assert case.ref.stat().st_size == kept >= HELD - PIECE // 2
    case.pull()
    assert case.asked() == [None, case.from_byte(kept)]


def test_after_an_end_in_the_middle_it_goes_on_by_range(scene: Scene) -> None:
    case = Case(scene, "ended")
    case.stalled()
    with case.pulling() as puller:
        case.arrived()
        pid = scene.mount.pid()
        assert pid is not None
        daemon = os.pidfd_open(pid)
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        assert puller.wait(timeout=PATIENCE) != 0
        assert select.select([daemon], [], [], PATIENCE)[0], "the daemon does not end"
        os.close(daemon)
    scene.registry.release()
    scene.mount.start()
    kept = case.ref.stat().st_size
    assert kept >= HELD - PIECE // 2
    case.pull()
    assert case.asked() == [None, case.from_byte(kept)]


def test_wrong_bytes_on_disk_are_found_out_and_the_layer_comes_anew(scene: Scene) -> None:
    case = Case(scene, "wrong")
    kept = case.killed()
    with case.kept("data").open("r+b") as file:
        file.seek(kept // 2)
        file.write(b"not what the registry sent")
    scene.mount.start()
    case.pull()
    assert case.asked() == [None, case.from_byte(kept), None]


@pytest.mark.parametrize("durable", [0, PIECE])
def test_after_a_power_cut_only_what_was_synced_is_believed(scene: Scene, durable: int) -> None:
    case = Case(scene, f"cut-{durable}")
    kept = case.killed()
    meta = case.kept("meta")
    meta.write_text(json.dumps(json.loads(meta.read_bytes()) | {"era": "an earlier boot", "durable": durable}))
    with case.kept("data").open("r+b") as file:
        file.seek(durable)
        file.write(bytes(kept - durable))  # the content of the disk if nothing was written back
    scene.mount.start()
    assert case.ref.stat().st_size == durable
    case.pull()
    assert case.asked() == [None, case.from_byte(durable) if durable else None]


def test_rm_ends_the_pull_and_the_next_begins_anew(scene: Scene) -> None:
    case = Case(scene, "removed")
    case.stalled()
    with case.pulling() as puller:
        case.arrived()
        succeed("rm", case.ref)
        assert "Operation canceled" in puller.communicate(timeout=20)[1]
    assert not case.ref.exists()
    scene.registry.release()
    case.pull()
    assert case.asked() == [None, None]


def test_what_a_user_brought_is_gone_on_from(scene: Scene) -> None:
    case = Case(scene, "brought")
    write(case.ref, case.layer.blob[:PIECE])
    case.pull()
    assert case.asked() == [case.from_byte(PIECE)]


def test_a_ref_whose_blob_is_stored_is_refused_and_one_whose_tar_is_here_is_not(scene: Scene) -> None:
    case = Case(scene, "stored")
    case.pull()
    write(case.ref, case.layer.blob)  # so it needs no registry
    os.rename(case.ref, scene.blob(case.layer.digest))
    with refused(errno.EEXIST):
        write(case.ref, b"x")


def test_a_disk_that_holds_the_tar_but_not_the_copy_beside_it_is_large_enough(tmp_path: Path) -> None:
    with FakeRegistry() as registry, small_disk(tmp_path, 64 << 20) as disk, Mounted(tmp_path, CONFIG) as mount:
        mount.state = disk / "state"
        mount.start()
        case = Case(Scene(registry, mount), "tight", pieces=12)
        _fill(disk, leave=16 * PIECE)
        case.pull()
        assert case.asked() == [None]


def test_on_a_full_disk_what_came_waits_for_room(tmp_path: Path) -> None:
    with FakeRegistry() as registry, small_disk(tmp_path, 64 << 20) as disk, Mounted(tmp_path, CONFIG) as mount:
        mount.state = disk / "state"
        mount.start()
        case = Case(Scene(registry, mount), "full", pieces=12)
        filler = _fill(disk, leave=8 * PIECE)
        with refused(errno.ENOSPC):
            (case.name / "pull").read_bytes()
        kept = case.ref.stat().st_size
        assert kept > PIECE
        filler.unlink()
        until(lambda: (case.name / "pull").read_bytes())
        case.pull()
        assert case.asked() == [None, case.from_byte(kept)]


def _fill(disk: Path, leave: int) -> Path:
    """Fill the disk with a file, except for `leave` bytes."""
    filler, free = disk / "filler", os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)
    return filler
