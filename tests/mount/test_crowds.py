"""Many callers that wait for an unresponsive registry do not delay callers that need nothing from it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import stall
from imgfs.testing.registry import FakeRegistry
from imgfs.transfer.layers import GATHERED_A_HOST
from tests.mount.kernel_views import forget_layers
from tests.mount.scene import Scene, serving, small, succeed, until
from tests.support.exposition import parse

READERS = 99
FAST = 3
"""Longest time of a listing in seconds on a busy host. A listing that waited for a reader would take 30."""
FREEDOM = 2
"""Seconds after which a signalled process counts as stuck."""
BIG = small("big", layers=READERS)
LAZY, SINGLE = small("lazy", layers=3), small("single")
PAGES = 300
"""Files of one layer, each with pages of its own: many more than the kernel reads at once by default."""
WIDE = image([layer([File(f"{number}", bytes([number % 256]) * 5000) for number in range(PAGES)])], platform=AMD64)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """`big` is resolved and has no stored layer. `here` is complete. Other images have a view and no stored layer."""
    with serving(tmp_path_factory.mktemp("crowds")) as made:
        lazy = {"lazy": LAZY, "single": SINGLE, "wide": WIDE}
        for mark, one in (*lazy.items(), ("here", small("here", layers=3))):
            os.listdir(f"{made.serve(one, mark)}/rootfs/")
        made.mount.stop()
        for one in lazy.values():
            forget_layers(made.mount, one)
        made.mount.start()
        os.stat(made.serve(BIG, "big"))
        yield made


@contextmanager
def crowd(scene: Scene, blobs: str, reads: Sequence[Callable[[], object]], waiters: int) -> Generator[None]:
    """Start all these reads at once, while the registry answers no request for the blobs that match.

    In the context, at least `waiters` requests of the kernel wait, and no read ends. Then the registry answers all.
    """
    fault = scene.registry.fault(stall(), f"/blobs/({blobs})", times=None)
    with ThreadPoolExecutor(len(reads)) as pool:
        readers = [pool.submit(read) for read in reads]
        try:
            until(lambda: waiting(scene) >= waiters)
            yield
            assert not [one for one in readers if one.done()], "a read ended before the registry answered"
        finally:
            fault.times = 0
            scene.registry.release(fault.met)
    for one in readers:
        one.result()


def waiting(scene: Scene) -> int:
    """Return the number of waiting requests in the tree, without the request that asks."""
    return int(parse((scene.mount.path / ".imgfs/metrics").read_text())["imgfs_waiting"].value()) - 1


def layers_of(made: Image) -> str:
    """Match the digest of each layer of an image."""
    return "|".join(one.digest for one in made.layers)


def at_once(*command: str | Path) -> str:
    """Run a program of the host, return its output, and check that it ends within FAST."""
    began = time.monotonic()
    said = succeed(*command)
    assert time.monotonic() - began < FAST, command
    return said


def assert_nobody_notices(scene: Scene, mark: str) -> None:
    """Stored content is listed and read at once, and imgfs fetches other images from this registry and a second one."""
    path = scene.mount.path
    for directory in (path, scene.images, scene.directory(BIG.digest), scene.mount.content, scene.mount.snapshots):
        at_once("ls", "-l", f"{directory}/")
    assert at_once("ls", f"{scene.name('here')}/rootfs/").split() == ["0", "1", "2", "mark"]
    assert at_once("cat", scene.name("here") / "rootfs/2/file") == "file of here/2\n" * 100
    assert at_once("cat", scene.name("here") / "manifest.json")
    at_once("cat", path / ".imgfs/state.json")
    began = time.monotonic()
    other = scene.serve(small(f"{mark}/other"), f"{mark}/other")
    assert (other / "rootfs/mark").read_text() == f"{mark}/other/0\n"
    with FakeRegistry() as second:
        small(f"{mark}/second").add_to(second, "team/second", "1")
        assert (scene.images / second.host / "team/second:1/rootfs/mark").read_text() == f"{mark}/second/0\n"
    assert time.monotonic() - began < 2 * FAST


def test_99_reads_of_blobs_delay_no_other_caller(scene: Scene) -> None:
    """A request that sleeps holds one of the slots that a registry has for each repository."""
    reads = [scene.blob(one.digest).read_bytes for one in BIG.layers]
    with crowd(scene, layers_of(BIG), reads, READERS):
        assert_nobody_notices(scene, "blobs")
        with subprocess.Popen(["cat", scene.blob(BIG.layers[-1].digest)], stderr=subprocess.PIPE) as process:
            until(lambda: waiting(scene) > READERS)
            process.send_signal(signal.SIGINT)
            assert process.wait(FREEDOM) == -signal.SIGINT


def test_an_image_of_99_layers_and_its_99_readers_delay_no_other_caller(scene: Scene) -> None:
    """Another tag of the same repository is not delayed. The kernel follows a link for one caller at a time."""
    made = small("layers", layers=READERS)
    name = scene.serve(made, "layers")
    os.stat(name)
    sibling = scene.serve(small("sibling"), "layers", "2")
    with crowd(scene, layers_of(made), [lambda: os.listdir(f"{name}/rootfs/")] * READERS, 1):
        until(lambda: len(os.listdir(scene.mount.path / ".imgfs/transfers")) == GATHERED_A_HOST)
        assert_nobody_notices(scene, "layers")
        assert (sibling / "rootfs/mark").read_text() == "sibling/0\n"


def test_99_reads_through_a_kernel_view_delay_no_other_caller(scene: Scene) -> None:
    """The kernel requests a page once for any number of readers."""
    files = [scene.name("lazy") / f"rootfs/{number % 3}/file" for number in range(READERS)]
    with crowd(scene, layers_of(LAZY), [one.read_bytes for one in files], 3):
        assert_nobody_notices(scene, "view")


def test_many_reads_of_one_missing_layer_do_not_delay_another_image(scene: Scene) -> None:
    rootfs = scene.name("wide") / "rootfs"
    reads = [(rootfs / f"{number}").read_bytes for number in range(PAGES)]
    with crowd(scene, layers_of(WIDE), reads, PAGES):
        assert at_once("cat", scene.name("single") / "rootfs/mark") == "single/0\n"
