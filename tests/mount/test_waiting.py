"""Readers that wait for a registry: signals interrupt them, other readers continue, and one fetch serves all."""

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
from imgfs.testing.faults import stall, status
from tests.mount.scene import Scene, refused, serving, small, succeed

FREEDOM = 2
"""Seconds after which a signalled process counts as stuck. The contract says 0.3; a benchmark measures that."""
END = 8
"""Seconds in which a stopping daemon ends. It waits 10 seconds for a process in its tree."""
READERS = 50


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("waiting")) as made:
        yield made


class Stall:
    """One response that stalls. `release` lets it continue, once."""

    def __init__(self, scene: Scene, match: str, after: int) -> None:
        self._registry = scene.registry
        self._fault = scene.registry.fault(stall(after), match)

    def release(self) -> None:
        """Let the response continue. If it has not started, it does not stall."""
        if self._fault.met and self._fault.times:
            self._registry.release()
        self._fault.times = 0


@contextmanager
def stalled(scene: Scene, match: str, after: int = -1) -> Iterator[Stall]:
    """Stall one response to a matching request after so many bytes, until it is released or the context ends."""
    made = Stall(scene, match, after)
    try:
        yield made
    finally:
        made.release()


@contextmanager
def waiting(scene: Scene, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in the context, which begins when the request of the process stalls at the registry."""
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert scene.registry.valve.wait_arrival()
            yield process
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Wait:
    """A program, the request that it waits for, and whether the image is resolved (`known`) before the start."""

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
    Wait("pull", lambda scene, name, made: ["cat", name / "pull"], _layer),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
@pytest.mark.parametrize("wait", WAITS, ids=lambda one: one.name)
def test_a_signal_frees_a_waiting_process(scene: Scene, wait: Wait, number: signal.Signals) -> None:
    repository = f"free/{wait.name}-{number.name.lower()}"
    made = small(repository)
    name = scene.serve(made, repository)
    if wait.known:
        os.stat(name)
    command = wait.command(scene, name, made)
    with stalled(scene, wait.match(made, repository)), waiting(scene, *command) as process:
        process.send_signal(number)
        assert process.wait(FREEDOM) == -number
    assert (name / "rootfs/mark").read_text() == f"{repository}/0\n"


def test_an_ignored_signal_does_not_end_the_wait(scene: Scene) -> None:
    made = small("ignored")
    name = scene.serve(made, "ignored")
    os.stat(name)
    script = f"trap '' INT; exec cat {name}/rootfs/mark"
    with stalled(scene, made.layers[0].digest) as held, waiting(scene, "sh", "-c", script) as process:
        process.send_signal(signal.SIGINT)
        held.release()
        assert process.communicate()[0] == b"ignored/0\n"


def test_other_callers_continue_while_a_reader_waits(scene: Scene) -> None:
    """A separate directory, because the kernel looks up one name of a directory at a time."""
    stuck = scene.serve(small("stuck"), "stuck/alone")
    here = scene.serve(small("here"), "here")
    os.listdir(f"{here}/rootfs/")
    with stalled(scene, "/v2/stuck/") as held, waiting(scene, "cat", stuck / "rootfs/mark") as process:
        assert (scene.serve(small("new"), "new") / "rootfs/mark").read_bytes() == b"new/0\n"
        assert (here / "rootfs/mark").read_bytes() == b"here/0\n"
        assert "stuck" not in succeed("ls", "-lR", scene.mount.path)
        held.release()
        assert process.communicate()[0] == b"stuck/0\n"


def together(read: Callable[[], bytes]) -> list[Future[bytes]]:
    """Start many readers at once."""
    pool = ThreadPoolExecutor(READERS)
    readers = [pool.submit(read) for _ in range(READERS)]
    pool.shutdown(wait=False)
    return readers


def test_many_readers_of_one_blob_make_one_fetch(scene: Scene) -> None:
    made = small("crowd/blob")
    os.stat(scene.serve(made, "crowd/blob"))
    path = scene.blob(made.layers[0].digest)
    with scene.requests("blob"), stalled(scene, path.name, after=50) as held:
        readers = together(path.read_bytes)
        assert scene.registry.valve.wait_arrival()
        held.release()
        assert {one.result() for one in readers} == {made.layers[0].blob}


def test_many_readers_of_one_name_and_layer_make_one_fetch(scene: Scene) -> None:
    made = small("crowd/image")
    path = scene.serve(made, "crowd/image") / "rootfs/mark"
    with scene.requests("manifest", "blob", "blob"), stalled(scene, made.layers[0].digest, after=50) as held:
        readers = together(path.read_bytes)
        assert scene.registry.valve.wait_arrival()
        held.release()
        assert {one.result() for one in readers} == {b"crowd/image/0\n"}


def test_many_readers_of_a_failing_blob_share_one_error(scene: Scene) -> None:
    made = small("crowd/failing")
    os.stat(scene.serve(made, "crowd/failing"))
    path = scene.blob(made.layers[0].digest)
    scene.registry.fault(status(403), path.name, times=None)
    with scene.requests("blob"):
        failures = [one.exception() for one in together(path.read_bytes)]
    assert {getattr(one, "errno", None) for one in failures} == {errno.EACCES}


def test_an_interrupted_first_reader_does_not_fail_the_others(scene: Scene) -> None:
    made = small("first")
    os.stat(scene.serve(made, "first"))
    path = scene.blob(made.layers[0].digest)
    with (
        scene.requests("blob"),
        stalled(scene, path.name, after=50) as held,
        waiting(scene, "cat", path) as process,
    ):
        readers = together(path.read_bytes)
        process.send_signal(signal.SIGINT)
        assert process.wait(FREEDOM) == -signal.SIGINT
        held.release()
        assert {one.result() for one in readers} == {made.layers[0].blob}


def test_the_next_reader_continues_an_abandoned_fetch(scene: Scene) -> None:
    made = small("abandoned")
    os.stat(scene.serve(made, "abandoned"))
    path = scene.blob(made.layers[0].digest)
    with scene.requests("blob"), stalled(scene, path.name, after=50) as held:
        with waiting(scene, "cat", path) as process:
            process.kill()
            assert process.wait(FREEDOM) == -signal.SIGKILL
        held.release()
        assert path.read_bytes() == made.layers[0].blob


def test_rm_of_a_blob_in_flight_cancels_the_fetch(scene: Scene) -> None:
    made = small("removed")
    os.stat(scene.serve(made, "removed"))
    path = scene.blob(made.layers[0].digest)
    with stalled(scene, path.name, after=50), waiting(scene, "cat", path) as process:
        succeed("rm", path)
        assert b"canceled" in process.communicate()[1].lower()
        assert process.returncode == 1
    with refused(errno.ENOENT):
        os.unlink(path)
    assert path.read_bytes() == made.layers[0].blob


def test_stopping_answers_all_waiters(tmp_path: Path) -> None:
    with serving(tmp_path) as scene:
        made = small("stopped")
        name = scene.serve(made, "stopped")
        os.stat(name)
        layer = made.layers[0].digest
        scene.registry.fault(stall(), "/v2/other/")
        scene.registry.fault(stall(), "/v2/insistent/", times=None)
        scene.registry.fault(stall(), layer, times=None)
        with (
            waiting(scene, "cat", scene.name("other")) as lookup,
            waiting(scene, "cat", scene.blob(layer)) as blob,
            waiting(scene, "ls", f"{name}/rootfs/") as rootfs,
            waiting(scene, sys.executable, "-c", f"open({str(scene.name('insistent'))!r})") as insistent,
        ):
            pid = scene.mount.pid()
            assert pid is not None
            daemon = os.pidfd_open(pid)
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
            assert select.select([daemon], [], [], END)[0], (
                "a process that repeats its call delayed the end of the daemon"
            )
            os.close(daemon)
            for process in (lookup, blob, rootfs, insistent):
                assert process.communicate(timeout=FREEDOM)[1]
                assert process.returncode > 0
        assert mount_at(str(scene.mount.path)) is None
        scene.registry.valve.open()
        scene.registry.reset()
        scene.mount.start()
        assert (name / "rootfs/mark").read_bytes() == b"stopped/0\n"
