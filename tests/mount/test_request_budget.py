"""The README limits the requests of a first contact. A proxy before real registries counts them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from imgfs.testing.images import ARM64, BuiltIndex, File, Image, attestation, image, index, layer
from imgfs.testing.registry import FakeRegistry
from tests.mount.private import PASSWORD, USER, Home, registry_with_tokens
from tests.support.mounted import Mounted
from tests.support.proxy import CountingProxy, counting_proxy
from tests.support.servers import DockerRegistry, docker_registry, skopeo_push

LAYERS = 3


def many() -> BuiltIndex:
    ours = image([layer([File(f"file{number}", b"x" * number)]) for number in range(LAYERS)])
    return index([image([layer([File("arm")])], platform=ARM64), ours, attestation(ours)])


def asked(proxy: CountingProxy) -> Counter[str]:
    """Return the number of requests since the last call, by method and kind."""
    seen = Counter(f"{one.method} {one.path.split('/')[-2]}" for one in proxy.requests)
    proxy.requests.clear()
    return seen


def push(directory: Path, registry: DockerRegistry, login: str = "") -> None:
    many().write_layout(directory / "layout", "1")
    skopeo_push(directory / "layout", "1", registry.host, "box", login)


def use_it_all(mounted: Mounted, name: str) -> None:
    """Run every operation that a complete image serves without a request."""
    assert (mounted.rootfs(name) / "file1").read_bytes() == b"x"
    assert mounted.run("pull", name).returncode == 0
    for document in ("index.json", "manifest.json", "config.json", "status"):
        assert (mounted.image(name) / document).read_bytes()
    assert os.listdir(mounted.image(name) / "referrers") == []


def test_an_open_registry_receives_one_request_for_each_document_and_layer(tmp_path: Path, mounted: Mounted) -> None:
    with docker_registry(tmp_path / "registry") as registry, counting_proxy(registry.host) as proxy:
        push(tmp_path, registry)
        name = f"{proxy.host}/box:1"
        assert mounted.run("pull", name).returncode == 0
        assert asked(proxy) == {"GET manifests": 2, "GET blobs": 1 + LAYERS}
        use_it_all(mounted, name)
        assert asked(proxy) == {}
        mounted.stop()
        mounted.start()
        use_it_all(mounted, name)
        assert asked(proxy) == {}
        os.utime(mounted.image(name), follow_symlinks=False)
        assert asked(proxy) == {"HEAD manifests": 1}


def test_a_registry_with_tokens_costs_one_more_refused_request_and_one_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path, monkeypatch)
    with (
        registry_with_tokens(tmp_path) as (registry, tokens, _),
        counting_proxy(registry.host) as proxy,
        Mounted(tmp_path) as mounted,
    ):
        mounted.start()
        push(tmp_path, registry, f"{USER}:{PASSWORD}")
        home.log_in(proxy.host)
        proxy.requests.clear()
        tokens.shown.clear()
        name = f"{proxy.host}/box:1"
        assert mounted.run("pull", name).returncode == 0
        assert asked(proxy) == {"GET manifests": 1 + 2, "GET blobs": 1 + LAYERS}
        assert len(tokens.shown) == 1
        use_it_all(mounted, name)
        os.utime(mounted.image(name), follow_symlinks=False)
        assert asked(proxy) == {"HEAD manifests": 1}
        assert len(tokens.shown) == 1


def test_a_tag_that_moved_to_a_stored_image_costs_one_head(mounted: Mounted) -> None:
    with FakeRegistry() as registry:
        pair: list[Image] = [image([layer([File("mark", mark)])]) for mark in (b"one", b"two")]
        for tag, made in zip(("1", "2"), pair, strict=True):
            made.add_to(registry, "box", tag)
            assert mounted.run("pull", f"{registry.host}/box:{tag}").returncode == 0
        pair[1].add_to(registry, "box", "1")
        registry.reset()
        os.utime(mounted.image(f"{registry.host}/box:1"), follow_symlinks=False)
        assert (mounted.rootfs(f"{registry.host}/box:1") / "mark").read_bytes() == b"two"
        assert [one.kind for one in registry.log] == ["tag"]
