""".imgfs/transfers/ and `imgfs status`: they show running transfers, and nothing once a transfer has ended."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import cut_at, stall
from imgfs.testing.uploads import PushRegistry
from tests.mount.scene import Scene, refused, serving, until
from tests.support.exposition import parse

PART = 1000


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("transfers")) as made:
        yield made


@contextmanager
def reading(scene: Scene, digest: str, after: int, path: Path) -> Generator[Future[bytes]]:
    """A reader of `path` that waits for a stalled blob. At the end of the block the blob continues."""
    scene.registry.fault(stall(after), digest)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(path.read_bytes)
        stalled = scene.registry.valve.wait_arrival()
        assert stalled is not None
        try:
            yield reader
        finally:
            stalled.release()


def noisy(mark: str) -> Image:
    """Return an image with one uncompressed layer of more than PART bytes."""
    return image([layer([File("noise", os.urandom(20_000)), File("mark", mark.encode())], "none")], platform=AMD64)


def running(scene: Scene) -> list[dict[str, Any]]:
    """Return all running transfers."""
    directory = scene.mount.path / ".imgfs/transfers"
    return [json.loads((directory / name).read_bytes()) for name in os.listdir(directory)]


def test_nothing_runs_where_nobody_reads(scene: Scene) -> None:
    assert os.listdir(scene.mount.path / ".imgfs/transfers") == []
    with refused(errno.ENOENT):
        os.stat(scene.mount.path / ".imgfs/transfers/pull-x")
    with refused(errno.EPERM):
        os.mkdir(scene.mount.path / ".imgfs/transfers/new")


def test_a_layer_on_its_way_tells_for_whom_from_where_and_how_far(scene: Scene) -> None:
    made = noisy("told")
    name, digest = scene.serve(made, "team/told"), made.layers[0].digest
    before = time.time_ns()
    with reading(scene, digest, PART, name / "rootfs/mark") as reader:
        (told,) = until(lambda: [one for one in running(scene) if one["offset"] == PART])
        whole = len(made.layers[0].blob)
        assert (told["name"], told["direction"], told["digest"]) == (f"pull-{digest}", "pull", digest)
        assert (told["host"], told["repository"]) == (scene.registry.host, "team/told")
        assert told["names"] == [f"{scene.registry.host}/team/told:1"]
        assert (told["total"], told["ref"], told["attempts"], told["error"]) == (whole, f"layer-{digest}", 1, None)
        assert before - 10**9 < told["started"] < time.time_ns()
        assert told["rate"] >= 0
        path = scene.mount.path / ".imgfs/transfers" / told["name"]
        assert path.stat().st_size > 100
        with refused(errno.EPERM):
            os.open(path, os.O_WRONLY)
    assert reader.result() == b"told"
    assert running(scene) == []
    with refused(errno.ENOENT):
        path.read_bytes()


def test_a_try_that_failed_is_told_while_the_next_one_runs(scene: Scene) -> None:
    made = noisy("tried")
    digest = made.layers[0].digest
    os.stat(scene.serve(made, "team/tried"))
    scene.registry.fault(cut_at(5000), digest)
    with reading(scene, digest, 100, scene.blob(digest)) as reader:
        (told,) = until(lambda: [one for one in running(scene) if one["offset"] == 5100])
        assert (told["attempts"], told["names"], told["ref"]) == (2, [], f"blob-{digest}")
        assert scene.registry.host in told["error"]
    assert reader.result() == made.layers[0].blob


def test_status_shows_what_is_on_its_way(scene: Scene) -> None:
    made = noisy("shown")
    name, digest = scene.serve(made, "team/shown"), made.layers[0].digest
    with reading(scene, digest, PART, name / "rootfs/mark") as reader:
        until(lambda: [one for one in running(scene) if one["offset"] == PART])
        shown = scene.mount.run("status").stdout.splitlines()
        line = next(line for line in shown if line.startswith("pull"))
        assert line.split()[:3] == ["pull", digest[:19], f"{100 * PART // len(made.layers[0].blob)}%"]
        assert f"{scene.registry.host}/team/shown" in line
        (told,) = json.loads(scene.mount.run("status", "--format", "json").stdout)["transfers"]
        assert (told["digest"], told["offset"]) == (digest, PART)
        assert "loading" in scene.mount.run("status", f"{scene.registry.host}/team/shown:1").stdout
    assert reader.result() == b"shown"


def test_what_is_pushed_is_among_them(scene: Scene) -> None:
    made = noisy("pushed")
    name = scene.serve(made, "team/pushed")
    assert (name / "pull").read_bytes()
    with PushRegistry() as target, ThreadPoolExecutor(1) as pool:
        target.fault(stall(), "PUT .*/uploads/")
        pushing = pool.submit((name / "push" / target.host / "out/app:1").read_bytes)
        stalled = target.valve.wait_arrival()
        assert stalled is not None
        try:
            told = until(lambda: [one for one in running(scene) if one["direction"] == "push"])
            assert {(one["host"], one["repository"]) for one in told} == {(target.host, "out/app")}
            assert {one["digest"] for one in told} <= set(made.blobs)
            assert {tuple(one["names"]) for one in told} == {(f"{scene.registry.host}/team/pushed:1",)}
            assert f"{target.host}/out/app" in scene.mount.run("status").stdout
        finally:
            stalled.release()
        assert json.loads(pushing.result())["digest"] == made.digest
    assert running(scene) == []
    metrics = parse((scene.mount.path / ".imgfs/metrics").read_text())
    sent = sum(map(len, made.blobs.values()))
    assert metrics["imgfs_transfers_bytes_total"].value(direction="push") == sent
    assert metrics["imgfs_registry_sent_bytes_total"].value(host=target.host) >= sent
