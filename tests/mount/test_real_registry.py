"""A real registry behind a counting proxy: the requests of a first read, and no requests after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.testing.images import (
    ARM64,
    BuiltIndex,
    Compression,
    File,
    Image,
    attestation,
    busybox_image,
    image,
    index,
    layer,
    oddities_image,
)
from imgfs.testing.registry import FakeRegistry
from tests.support import oracles
from tests.support.mounted import PATIENCE, Mounted
from tests.support.programs import run
from tests.support.proxy import CountingProxy, counting_proxy
from tests.support.servers import DockerRegistry, Upload, docker_registry, skopeo_push

GREETING = "usr/share/greeting"


@dataclass(frozen=True, slots=True)
class Scene:
    """A registry, a counting proxy before it, and a mount that knows only the proxy."""

    registry: DockerRegistry
    proxy: CountingProxy
    mounted: Mounted

    def push(self, built: Image | BuiltIndex, repository: str = "box", tag: str = "1") -> str:
        """Push an image to the registry without the proxy, and return its full name at the proxy."""
        built.add_to(Upload(self.registry.host, repository), repository, tag)
        return f"{self.proxy.host}/{repository}:{tag}"

    def asked(self) -> list[str]:
        """Return the method and kind of each request since the last call, in order."""
        seen = [f"{one.method} {one.path.split('/')[-2]}" for one in self.proxy.requests]
        self.proxy.requests.clear()
        return seen


@pytest.fixture
def scene(tmp_path: Path, mounted: Mounted) -> Iterator[Scene]:
    """A new registry for each test, because tests stop it."""
    with docker_registry(tmp_path / "registry") as registry, counting_proxy(registry.host) as proxy:
        yield Scene(registry, proxy, mounted)


def read(mounted: Mounted, name: str, path: str = GREETING) -> bytes:
    """Read a file with cat, a process that does not know imgfs."""
    return run("cat", mounted.rootfs(name) / path)


def pull_in_the_end(mounted: Mounted, name: str) -> None:
    """Retry a pull until it succeeds, because imgfs returns a recent failure again for a short time."""
    deadline = time.monotonic() + PATIENCE
    while (done := mounted.run("pull", name)).returncode:
        assert time.monotonic() < deadline, done.stderr


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_first_cat_requests_manifest_config_and_each_layer_once(scene: Scene, compression: Compression) -> None:
    name = scene.push(busybox_image(compression))
    assert read(scene.mounted, name) == b"upper\n"
    assert sorted(scene.asked()) == ["GET blobs"] * 5 + ["GET manifests"]


def test_index_costs_one_more_request_and_other_platforms_none(scene: Scene) -> None:
    ours, theirs = busybox_image(), image([layer([File("arm", b"64")])], platform=ARM64)
    name = scene.push(index([theirs, ours, attestation(ours)]))
    assert read(scene.mounted, name) == b"upper\n"
    assert sorted(scene.asked()) == ["GET blobs"] * 5 + ["GET manifests"] * 2


def test_documents_are_read_without_a_request_for_a_layer(scene: Scene) -> None:
    built = busybox_image()
    name = scene.push(built)
    assert (scene.mounted.image(name) / "manifest.json").read_bytes() == built.document
    assert scene.asked() == ["GET manifests"]
    assert (scene.mounted.image(name) / "config.json").read_bytes() == built.config
    assert scene.asked() == ["GET blobs"]


def test_image_pushed_by_skopeo_is_read_by_tag_and_by_digest(scene: Scene, tmp_path: Path) -> None:
    built = oddities_image(oracles.UMOCI)
    built.write_layout(tmp_path / "layout", "latest")
    skopeo_push(tmp_path / "layout", "latest", scene.registry.host, "odd/deep/er")
    assert read(scene.mounted, f"{scene.proxy.host}/odd/deep/er:latest", "duplicate") == b"the last one wins\n"
    scene.asked()
    assert read(scene.mounted, f"{scene.proxy.host}/odd/deep/er@{built.digest}", "duplicate") == b"the last one wins\n"
    assert len(scene.asked()) <= 1


def test_second_read_sends_no_request(scene: Scene) -> None:
    name = scene.push(busybox_image())
    read(scene.mounted, name)
    scene.asked()
    assert read(scene.mounted, name) == b"upper\n"
    assert read(scene.mounted, name, "etc/os-release").startswith(b"ID=imgfs-test")
    assert scene.mounted.run("pull", name).returncode == 0
    assert scene.asked() == []


def test_remount_sends_no_request_and_works_without_registry(scene: Scene) -> None:
    name = scene.push(busybox_image())
    read(scene.mounted, name)
    scene.mounted.stop()
    scene.asked()
    scene.mounted.start()
    assert read(scene.mounted, name) == b"upper\n"
    assert scene.asked() == []
    scene.registry.stop()
    assert read(scene.mounted, name, "etc/group") == b"root:x:0:\nnogroup:x:65534:\n"
    scene.mounted.stop()
    scene.mounted.start()
    assert read(scene.mounted, name) == b"upper\n"
    assert scene.asked() == []


def test_read_after_a_killed_daemon_sends_no_request(scene: Scene) -> None:
    name = scene.push(busybox_image())
    assert scene.mounted.run("pull", name).returncode == 0
    scene.asked()
    scene.mounted.kill()
    scene.mounted.start()
    assert read(scene.mounted, name) == b"upper\n"
    assert scene.asked() == []


def test_walking_stored_names_sends_no_request(scene: Scene) -> None:
    name = scene.push(index([busybox_image(), image([layer([File("arm")])], platform=ARM64)]))
    os.readlink(scene.mounted.image(name))
    scene.asked()
    before = run("ls", "-lR", scene.mounted.path)
    run("find", scene.mounted.path, "-ls")
    run("du", "-a", scene.mounted.path)
    assert scene.asked() == []
    assert b"rootfs" in before
    read(scene.mounted, name)
    scene.asked()
    assert b"greeting" in run("ls", "-lR", scene.mounted.path)
    run("find", scene.mounted.path, "-type", "f", "-name", "greeting")
    run("du", "-sh", scene.mounted.path)
    assert scene.asked() == []


def test_listing_a_host_or_repository_sends_no_request(scene: Scene) -> None:
    scene.push(busybox_image(), "deep/box")
    for path in ("", "deep", "deep/box", "nowhere"):
        assert os.listdir(scene.mounted.image(f"{scene.proxy.host}/{path}")) == []
    assert scene.asked() == []


def test_touch_of_a_name_sends_one_head(scene: Scene) -> None:
    name = scene.push(busybox_image())
    read(scene.mounted, name)
    scene.asked()
    run("touch", "-h", scene.mounted.image(name))
    assert scene.asked() == ["HEAD manifests"]
    moved = image([layer([File("moved", b"yes")])])
    scene.push(moved)
    assert not (scene.mounted.rootfs(name) / "moved").exists()
    run("touch", "-h", scene.mounted.image(name))
    assert os.readlink(scene.mounted.image(name)).endswith(moved.digest)
    assert (scene.mounted.rootfs(name) / "moved").read_bytes() == b"yes"


def test_touch_through_a_name_sends_one_head_for_every_name_of_the_image(scene: Scene) -> None:
    names = [scene.push(busybox_image(), "box", tag) for tag in ("1", "2")]
    for name in names:
        read(scene.mounted, name)
    scene.asked()
    run("touch", scene.mounted.image(names[0]))
    assert scene.asked() == ["HEAD manifests"] * 2


def test_layers_that_two_images_share_are_fetched_once(scene: Scene) -> None:
    base = layer([File("base", b"shared" * 9999)])
    first = scene.push(image([base, layer([File("own", b"first")])]), "first")
    second = scene.push(image([base, layer([File("own", b"second")])]), "second")
    assert read(scene.mounted, first, "own") == b"first"
    scene.asked()
    assert read(scene.mounted, second, "own") == b"second"
    assert (scene.mounted.rootfs(second) / "base").read_bytes() == b"shared" * 9999
    assert sorted(scene.asked()) == ["GET blobs"] * 2 + ["GET manifests"]


def test_layer_that_an_image_has_twice_is_fetched_once(scene: Scene) -> None:
    twice = layer([File("twice", b"2" * 5000)])
    name = scene.push(image([twice, layer([File("between")]), twice]))
    assert read(scene.mounted, name, "twice") == b"2" * 5000
    assert scene.proxy.count(within=twice.digest) == 1


def test_layer_in_three_compressions_is_stored_once_and_logs_no_warning(scene: Scene) -> None:
    for number in range(8):
        tar = layer([File("same", b"%d" % number * 30_000)]).tar
        name = scene.push(image([layer(tar, "gzip"), layer(tar, "none"), layer(tar, "zstd")]), f"thrice{number}")
        assert scene.mounted.run("pull", name).returncode == 0
        assert read(scene.mounted, name, "same") == b"%d" % number * 30_000
    assert [line for line in scene.mounted.log().splitlines() if '"level": "info"' not in line] == []
    assert len(list((scene.mounted.state / "layers").glob("*/*"))) == 8


def test_missing_tag_is_absent_until_it_is_pushed(scene: Scene) -> None:
    name = scene.push(busybox_image())
    other = f"{scene.proxy.host}/box:2"
    assert not scene.mounted.image(other).exists()
    assert os.listdir(scene.mounted.image(f"{scene.proxy.host}/box")) == []
    scene.push(busybox_image(), tag="2")
    pull_in_the_end(scene.mounted, other)
    assert scene.mounted.run("pull", name).returncode == 0
    assert sorted(os.listdir(scene.mounted.image(f"{scene.proxy.host}"))) == ["box:1", "box:2"]


def test_registry_that_restarts_is_read_again(scene: Scene) -> None:
    name = scene.push(busybox_image())
    os.readlink(scene.mounted.image(name))
    scene.registry.stop()
    assert scene.mounted.run("pull", name).returncode == 5
    assert os.readlink(scene.mounted.image(name)).endswith(busybox_image().digest)
    scene.registry.start()
    pull_in_the_end(scene.mounted, name)
    assert read(scene.mounted, name) == b"upper\n"


def test_one_token_serves_all_requests_of_a_repository(mounted: Mounted) -> None:
    with FakeRegistry(token=True) as registry:
        built = busybox_image()
        built.add_to(registry, "private/box", "1")
        name = f"{registry.host}/private/box:1"
        assert read(mounted, name) == b"upper\n"
        assert registry.requests("token") == 1
        assert [one.status for one in registry.log].count(401) == 1
        assert registry.requests("blob") == 1 + len(built.layers)
        before = registry.requests()
        assert read(mounted, name) == b"upper\n"
        assert registry.requests() == before
        canary = next(iter(registry.tokens)).removeprefix("Bearer ")
        files = [path for path in mounted.state.rglob("*") if path.is_file()]
        assert not [path for path in files if canary.encode() in path.read_bytes()]
