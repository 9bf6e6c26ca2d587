"""Downloads by imgfs in content/ingest/: visible, removable, resumed by Range, and never in the way of users."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import cut_at, stall
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import CONFIG, Scene, assert_verified, refused, serving, succeed, until
from tests.mount.test_ingest_crashes import PIECE, ingest, noise, write
from tests.support.mounted import Mounted

HELD = 700_000
"""Bytes of a layer after which its registry stalls."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("crashes")) as made:
        yield made


def held(scene: Scene, mark: str) -> tuple[Image, Path]:
    """Return an image whose only layer stalls after HELD bytes at the registry, and the layer's blob."""
    made = image([layer([File("noise", noise(mark, 2 * PIECE))], "none")], platform=AMD64)
    os.stat(scene.serve(made, mark))
    return made, scene.blob(made.layers[0].digest)


def reading(blob: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sha256sum", blob], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def arrived(path: Path, least: int = 1) -> int:
    """Wait until the download has this many bytes; return its size."""
    return until(lambda: path.exists() and path.stat().st_size >= least and path.stat().st_size)


def test_a_download_is_seen_and_goes_on_by_range_after_a_kill(scene: Scene) -> None:
    made, blob = held(scene, "seen")
    scene.registry.fault(stall(HELD), f"GET.*{blob.name}")
    ref = ingest(scene) / f"blob-{blob.name}"
    with reading(blob) as reader:
        come = arrived(ref)
        assert ref.name in os.listdir(ref.parent)
        assert os.getxattr(ref, "user.imgfs.total") == str(len(made.layers[0].blob)).encode()
        assert os.getxattr(ref, "user.imgfs.expected") == blob.name.encode()
        with refused(errno.EBUSY):
            os.open(ref, os.O_WRONLY | os.O_TRUNC)
        come = ref.stat().st_size
        scene.mount.kill()
        assert reader.wait() != 0
    scene.registry.release()
    scene.mount.start()
    kept = ref.stat().st_size
    assert come <= kept <= HELD
    before = len(scene.registry.log)
    assert blob.read_bytes() == made.layers[0].blob
    asked = [one.range for one in scene.registry.log[before:] if one.kind == "blob"]
    assert asked == [f"bytes={kept}-{len(made.layers[0].blob) - 1}"]
    assert not ref.exists()


def test_rm_of_a_running_download_sets_its_readers_free(scene: Scene) -> None:
    made, blob = held(scene, "freed")
    scene.registry.fault(stall(HELD), f"GET.*{blob.name}")
    ref = ingest(scene) / f"blob-{blob.name}"
    with reading(blob) as one, reading(blob) as other:
        arrived(ref)
        succeed("rm", ref)
        for reader in (one, other):
            assert b"Operation canceled" in reader.communicate(timeout=20)[1]
    assert not ref.exists()
    scene.registry.release()
    with scene.requests("blob"):
        assert blob.read_bytes() == made.layers[0].blob
    assert scene.registry.log[-1].range is None


def test_rm_of_a_download_that_has_not_begun_to_come(scene: Scene) -> None:
    made, blob = held(scene, "early")
    scene.registry.fault(stall(), f"GET.*{blob.name}")
    ref = ingest(scene) / f"blob-{blob.name}"
    with reading(blob) as reader:
        until(ref.exists)
        succeed("rm", ref)
        assert b"Operation canceled" in reader.communicate(timeout=20)[1]
    scene.registry.release()
    assert not ref.exists()
    assert blob.read_bytes() == made.layers[0].blob


def test_a_download_goes_on_from_what_a_user_brought(scene: Scene) -> None:
    made, blob = held(scene, "brought")
    data = made.layers[0].blob
    write(ingest(scene) / f"blob-{blob.name}", data[:PIECE])
    with scene.requests("blob"):
        assert blob.read_bytes() == data
    assert scene.registry.log[-1].range == f"bytes={PIECE}-{len(data) - 1}"


def test_a_download_from_wrong_bytes_begins_again_once(scene: Scene) -> None:
    made, blob = held(scene, "poisoned")
    ref = ingest(scene) / f"blob-{blob.name}"
    write(ref, bytes(PIECE))
    with scene.requests("blob", "blob"):
        assert blob.read_bytes() == made.layers[0].blob
    assert not ref.exists()
    assert_verified(scene.mount.state)


def test_a_user_who_writes_under_a_downloads_ref_holds_nobody_up(scene: Scene) -> None:
    made, blob = held(scene, "beside")
    ref = ingest(scene) / f"blob-{blob.name}"
    with ref.open("wb", buffering=0) as file:
        file.write(b"slow")
        assert blob.read_bytes() == made.layers[0].blob
        assert file.write(b"er") == 2
    with refused(errno.EEXIST):
        os.rename(ref, blob)
    assert not ref.exists()


def test_a_download_that_was_cut_off_is_left_to_be_resumed(tmp_path: Path) -> None:
    with FakeRegistry() as registry, Mounted(tmp_path, CONFIG) as mount:
        mount.start()
        scene = Scene(registry, mount)
        made, blob = held(scene, "cut")
        registry.fault(cut_at(HELD), f"GET.*{blob.name}", times=1)
        assert blob.read_bytes() == made.layers[0].blob
        ranges = [one.range for one in registry.log if one.kind == "blob"]
        assert ranges[0] is None
        assert ranges[1] is not None
        assert 0 < int(ranges[1].removeprefix("bytes=").partition("-")[0]) <= HELD
