"""Readers that wait for a registry: signals set them free, the others go on, and one fetch serves all."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.kernel.mounts import mount_at
from imgfs.testing.build import Image
from imgfs.testing.registry import stall
from tests.mount.scene import Scene, error_of, refused, run, serving, small, succeed

FREEDOM = 2
"""Seconds after which a signalled process counts as stuck. The contract says 0.3; that is a bench's to measure."""
END = 15
READERS = 50


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("waiting")) as made:
        yield made


@contextmanager
def stalled(scene: Scene, match: str, after: int = -1) -> Iterator[None]:
    """One answer to a request that matches stalls; on leaving, it goes on and the flight behind it ends."""
    fault = scene.registry.fault(stall(after), match)
    try:
        yield
    finally:
        if fault.met:
            scene.registry.release()
        fault.times = 0


@contextmanager
def waiting(scene: Scene, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose request has reached the registry and stalls there."""
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert scene.registry.valve.wait_arrival()
            yield process
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Wait:
    """A program, what must be known before it starts, and which request it waits for."""

    name: str
    command: Callable[[Scene, Path, Image], list[str | Path]]
    match: Callable[[Image, str], str]
    known: bool = True


def _manifest(made: Image, repository: str) -> str:
    return f"GET /v2/{repository}/manifests"


def _layer(made: Image, repository: str) -> str:
    return made.layers[0].digest


def _tag(made: Image, repository: str) -> str:
    return f"HEAD /v2/{repository}/manifests"


WAITS = [
    Wait("cat-manifest", lambda scene, name, made: ["cat", name / "manifest.json"], _manifest, known=False),
    Wait("stat", lambda scene, name, made: ["stat", name], _manifest, known=False),
    Wait("readlink", lambda scene, name, made: ["readlink", name], _manifest, known=False),
    Wait("ls-l", lambda scene, name, made: ["ls", "-l", f"{name}/"], _manifest, known=False),
    Wait("cat-blob", lambda scene, name, made: ["cat", scene.blob(made.layers[0].digest)], _layer),
    Wait("ls-rootfs", lambda scene, name, made: ["ls", f"{name}/rootfs/"], _layer),
    Wait("cat-in-rootfs", lambda scene, name, made: ["cat", name / "rootfs/mark"], _layer),
    Wait("touch-h", lambda scene, name, made: ["touch", "-h", name], _tag),
    Wait("touch", lambda scene, name, made: ["touch", name], _tag),
    Wait("python", lambda scene, name, made: [sys.executable, "-c", f"open('{name}/rootfs/mark')"], _layer),
    Wait("pull", lambda scene, name, made: [sys.executable, "-c", _PULL, name], _layer),
]
_PULL = "import os, sys; os.setxattr(sys.argv[1], 'user.imgfs.pull', b'')"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
@pytest.mark.parametrize("wait", WAITS, ids=lambda one: one.name)
def test_a_signal_sets_a_waiting_process_free(scene: Scene, wait: Wait, number: signal.Signals) -> None:
    repository = f"free/{wait.name}-{number.name.lower()}"
    made = small(repository)
    name = scene.serve(made, repository)
    if wait.known:
        os.stat(name)
    with (
        stalled(scene, wait.match(made, repository)),
        waiting(scene, *wait.command(scene, name, made)) as process,
    ):
        process.send_signal(number)
        assert process.wait(FREEDOM) in {-number, 1 + (number == signal.SIGINT and wait.name == "python") * -(1 + number)}
    assert (name / "rootfs/mark").read_text() == f"{repository}/0\n"


def test_an_ignored_signal_leaves_the_wait_alone(scene: Scene) -> None:
    made = small("ignored")
    name = scene.serve(made, "ignored")
    os.stat(name)
    script = f"trap '' INT; exec cat {name}/rootfs/mark"
    with stalled(scene, made.layers[0].digest), waiting(scene, "sh", "-c", script) as process:
        process.send_signal(signal.SIGINT)
        scene.registry.release()
        assert process.communicate()[0] == b"ignored/0\n"
        scene.registry.fault(stall(), "never")
    assert process.returncode == 0


def test_others_go_on_while_one_waits(scene: Scene) -> None:
    stuck = scene.serve(small("stuck"), "stuck")
    here = scene.serve(small("here"), "here")
    os.listdir(f"{here}/rootfs/")
    with stalled(scene, "/v2/stuck/"), waiting(scene, "cat", stuck / "rootfs/mark") as process:
        assert (scene.serve(small("new"), "new") / "rootfs/mark").read_bytes() == b"new/0\n"
        assert (here / "rootfs/mark").read_bytes() == b"here/0\n"
        listing = succeed("ls", "-lR", scene.mount.path)
        assert "stuck" not in listing
        scene.registry.release()
        assert process.communicate()[0] == b"stuck/0\n"
        scene.registry.fault(stall(), "never")


def together(count: int, read: Callable[[], bytes]) -> list[Future[bytes]]:
    """Start `count` readers at once."""
    pool = ThreadPoolExecutor(count)
    readers = [pool.submit(read) for _ in range(count)]
    pool.shutdown(wait=False)
    return readers
