"""Layers that were evicted: the kernel walks the tree without them, and reading a file fetches its layer again."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.kernel.mounts import mount_at
from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import Fault, stall, status
from tests.mount.kernel_views import chain_of, forget_layers, prepare, shown_at
from tests.mount.scene import Scene, error_of, refused, run, serving, small, status_of, succeed, until

FREEDOM = 2
"""Seconds after which a signalled process counts as stuck. The contract says 0.3; that is a bench's to measure."""
READERS = 20


MISSING: dict[str, tuple[int, ...]] = {
    "walked": (0, 1, 2),
    "read": (0, 1, 2),
    "partly": (1,),
    "many": (0,),
    "below": (0, 1, 2),
    "dead": (1,),
    "back": (1,),
    "sigint": (0,),
    "sigkill": (0,),
    "waits": (0,),
    "stopping": (0,),
}
"""Which layers of each image are missing; all have three."""
BIG = os.urandom(5 << 20)
BIG_IMAGE = image([layer([File("big", BIG), File("after", b"after\n")])], platform=AMD64)
TWICE = [File("twice", b"compressed twice\n" * 1000)]
FIRST, SECOND = (image([layer(TWICE, compression)], platform=AMD64) for compression in ("gzip", "zstd"))
"""One tar in two blobs; the chain is on record with the first."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A mount whose images were used by an earlier daemon. Some of their layers were removed afterwards."""
    with serving(tmp_path_factory.mktemp("lazy")) as scene:
        made = {repository: small(repository, layers=3) for repository in MISSING}
        made |= {"big": BIG_IMAGE, "first": FIRST, "second": SECOND}
        for repository, one in made.items():
            os.listdir(f"{scene.serve(one, repository)}/rootfs/")
        scene.mount.stop()
        for repository, one in made.items():
            forget_layers(scene.mount, one, *MISSING.get(repository, ()))
        scene.mount.start()
        yield scene


@pytest.fixture(autouse=True)
def healthy(scene: Scene) -> Iterator[None]:
    """Undo the faults of each test."""
    yield
    scene.registry.reset()


def lazy(scene: Scene, repository: str) -> tuple[Image, Path]:
    """Return one of the images, and its rootfs."""
    return small(repository, layers=3), scene.name(repository) / "rootfs"


def content(repository: str, number: int) -> bytes:
    return f"file of {repository}/{number}\n".encode() * 100


@contextmanager
def waiting(scene: Scene, path: Path) -> Generator[subprocess.Popen[bytes]]:
    """Start a process that reads `path` and whose request is stalled at the registry."""
    with subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            assert scene.registry.valve.wait_arrival()
            yield process
        finally:
            process.kill()


def stalled(scene: Scene, made: Image, number: int = 0, after: int = -1) -> Fault:
    """Let the next request for a layer stall after that many bytes."""
    return scene.registry.fault(stall(after), f"GET .*/blobs/{made.layers[number].digest}")


def test_walking_asks_nobody(scene: Scene) -> None:
    made, rootfs = lazy(scene, "walked")
    with scene.silence():
        assert len(succeed("find", f"{rootfs}/").splitlines()) == 11
        succeed("ls", "-lRi", f"{rootfs}/")
        succeed("du", "-s", f"{rootfs}/")
        assert os.readlink(rootfs / "1/link") == "file"
        assert (rootfs / "1/file").stat().st_size == len(content("walked", 1))
        os.listxattr(rootfs / "1/file")
        with (rootfs / "1/file").open("rb"):
            pass
    assert shown_at(scene.mount, chain_of(scene, made)) == ["erofs"]


def test_reading_gets_the_layer_once_and_no_other(scene: Scene) -> None:
    _, rootfs = lazy(scene, "read")
    with scene.requests("blob"):
        assert (rootfs / "1/file").read_bytes() == content("read", 1)
        assert (rootfs / "1/link").read_bytes() == content("read", 1)
    with scene.requests("blob"):
        assert (rootfs / "mark").read_bytes() == b"read/2\n"
        assert (rootfs / "2/file").read_bytes() == content("read", 2)


def test_what_is_here_is_read_without_asking(scene: Scene) -> None:
    _, rootfs = lazy(scene, "partly")
    with scene.silence():
        assert (rootfs / "0/file").read_bytes() == content("partly", 0)
        assert (rootfs / "2/file").read_bytes() == content("partly", 2)
    with scene.requests("blob"):
        assert (rootfs / "1/file").read_bytes() == content("partly", 1)


def test_many_readers_make_one_request(scene: Scene) -> None:
    made, rootfs = lazy(scene, "many")
    stalled(scene, made, after=50)
    with scene.requests("blob"), ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit((rootfs / "0/file").read_bytes) for _ in range(READERS)]
        assert scene.registry.valve.wait_arrival()
        scene.registry.release()
        assert {one.result() for one in readers} == {content("many", 0)}


def test_a_big_file_comes_back_whole(scene: Scene) -> None:
    rootfs = scene.name("big") / "rootfs"
    with scene.requests("blob"):
        with (rootfs / "big").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 100_000, (5 << 20) - 50_000) == BIG[-50_000:]
        assert (rootfs / "big").read_bytes() == BIG
        assert (rootfs / "after").read_bytes() == b"after\n"


def test_an_active_snapshot_on_missing_layers_reads_and_copies_up(scene: Scene) -> None:
    made, rootfs = lazy(scene, "below")
    directory = prepare(scene, "above-missing", chain_of(scene, made).name)
    with scene.silence():
        assert sorted(os.listdir(directory / "rootfs")) == ["0", "1", "2", "mark"]
    with scene.requests("blob"), (directory / "rootfs/1/file").open("ab") as file:
        file.write(b"more\n")
    assert (directory / "rootfs/1/file").read_bytes() == content("below", 1) + b"more\n"
    assert (rootfs / "1/file").read_bytes() == content("below", 1)


def test_a_dead_registry_is_an_error_that_is_told_and_harms_nothing_else(scene: Scene) -> None:
    made, rootfs = lazy(scene, "dead")
    scene.registry.fault(status(500), f"GET .*/blobs/{made.layers[1].digest}", times=None)
    assert len(os.listdir(rootfs)) == 4
    with refused(errno.EIO):
        (rootfs / "1/file").read_bytes()
    digest = made.layers[1].digest
    for told in (scene.directory(made.digest), chain_of(scene, made)):
        assert digest in error_of(told), told
        assert "500" in error_of(told), told
    status_told = status_of(scene.name("dead"))
    assert digest in status_told["error"]
    assert [one["digest"] for one in status_told["parts"] if one["state"] == "failed"] == [digest]
    lines = [json.loads(line) for line in scene.mount.log().splitlines()]
    assert any(digest in line.get("error", "") and line.get("errno") == errno.EREMOTEIO for line in lines)
    assert (rootfs / "0/file").read_bytes() == content("dead", 0)
    assert (rootfs / "2/file").read_bytes() == content("dead", 2)


def test_what_failed_is_read_when_the_registry_is_back(scene: Scene) -> None:
    made, rootfs = lazy(scene, "back")
    scene.registry.fault(status(500), f"GET .*/blobs/{made.layers[1].digest}", times=None)
    with refused(errno.EIO):
        (rootfs / "1/file").read_bytes()
    scene.registry.reset()
    assert until((rootfs / "1/file").read_bytes) == content("back", 1)
    assert error_of(chain_of(scene, made)) == error_of(scene.directory(made.digest)) == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
def test_a_signal_sets_a_waiting_reader_free_and_nobody_else(scene: Scene, number: signal.Signals) -> None:
    repository = number.name.lower()
    made, rootfs = lazy(scene, repository)
    stalled(scene, made, after=50)
    path = rootfs / "0/file"
    with scene.requests("blob"), ThreadPoolExecutor(2) as pool, waiting(scene, path) as process:
        others = [pool.submit(path.read_bytes) for _ in range(2)]
        process.send_signal(number)
        assert process.wait(FREEDOM) == -number
        scene.registry.release()
        assert {one.result() for one in others} == {content(repository, 0)}


def test_readers_of_other_images_do_not_wait(scene: Scene) -> None:
    made, rootfs = lazy(scene, "waits")
    other = small("goes-on")
    name = scene.serve(other, "goes-on")
    fault = stalled(scene, made)
    with waiting(scene, rootfs / "0/file") as process:
        assert (name / "rootfs/0/file").read_bytes() == content("goes-on", 0)
        assert (rootfs / "1/file").read_bytes() == content("waits", 1)
        assert succeed("ls", scene.mount.snapshots)
        scene.registry.release()
        assert (process.communicate()[1], process.returncode) == (b"", 0)
    assert fault.met == 1


def test_stopping_answers_who_waits(scene: Scene) -> None:
    made, rootfs = lazy(scene, "stopping")
    fault = stalled(scene, made)
    with waiting(scene, rootfs / "0/file") as process:
        pid = scene.mount.pid()
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        assert b"Input/output error" in process.communicate(timeout=FREEDOM)[1]
    until(lambda: mount_at(str(scene.mount.path)) is None)
    scene.registry.release()
    fault.times = 0
    until(lambda: scene.mount.try_start().returncode == 0)
    assert (rootfs / "0/file").read_bytes() == content("stopping", 0)


def test_device_files_are_unlisted_read_only_and_refuse_what_is_no_layer(scene: Scene) -> None:
    made = small("device")
    os.listdir(f"{scene.serve(made, 'device')}/rootfs/")
    devices = scene.mount.path / ".imgfs/layers"
    assert os.listdir(devices) == []
    device = devices / made.layers[0].diff_id
    assert device.stat().st_mode == 0o100400
    assert device.read_bytes() == made.layers[0].tar
    with refused(errno.EPERM):
        os.open(device, os.O_WRONLY)
    for name in ("x", made.digest):
        with refused(errno.ENOENT):
            os.stat(devices / name)
    assert run("rm", "-f", device).returncode == 1


def test_what_one_blob_has_no_more_another_of_the_same_tar_has(scene: Scene) -> None:
    (blob,) = FIRST.layers
    scene.registry.fault(status(404), f"GET .*/blobs/{blob.digest}", times=None)
    with scene.requests("blob", "blob"):
        assert (scene.name("second") / "rootfs/twice").read_bytes() == b"compressed twice\n" * 1000
