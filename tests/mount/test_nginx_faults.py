"""A registry behind a real nginx whose upstream fails.

The error pages of nginx are not registry responses. imgfs reports them as failures of the registry.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import cut_at, stall
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import CONFIG, assert_verified, error_of, refused, small, until
from tests.mount.test_ingest_crashes import noise
from tests.support.mounted import Mounted
from tests.support.nginx import nginx, passing_to
from tests.support.programs import free_port

LIMITS = "[plugins.registry.http]\ntries = 2\n"
SIZE = 3 << 20
CUT = 1_000_000


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with Mounted(tmp_path_factory.mktemp("nginx"), f"{CONFIG}{LIMITS}") as mount:
        mount.start()
        yield mount
        assert_verified(mount.state)


def noisy(mark: str) -> tuple[Image, bytes]:
    """Return an image with one layer that is larger than the buffers of nginx, and the content of its file."""
    data = noise(mark, SIZE)
    return image([layer([File("noise", data)], "none")], platform=AMD64), data


def test_dead_upstream_is_reported_as_registry_failure(mounted: Mounted, tmp_path: Path) -> None:
    made, port = small("dead upstream"), free_port()
    with nginx(tmp_path / "nginx", passing_to(f"127.0.0.1:{port}")) as front:
        name = mounted.image(f"{front.authority}/dead:1")
        with refused(errno.EREMOTEIO):
            os.stat(name)
        assert f"registry {front.authority} answered 502; try again later" in error_of(name.parent)
        with FakeRegistry(port=port) as registry:
            made.add_to(registry, "dead", "1")
            assert until((name / "rootfs/mark").read_bytes) == b"dead upstream/0\n"


def test_slow_upstream_is_reported_as_registry_failure(mounted: Mounted, tmp_path: Path) -> None:
    made = small("slow upstream")
    with (
        FakeRegistry() as registry,
        nginx(tmp_path / "nginx", passing_to(registry.host, "proxy_read_timeout 1s")) as front,
    ):
        made.add_to(registry, "slow", "1")
        fault = registry.fault(stall(), made.layers[0].digest, times=None)
        name = mounted.image(f"{front.authority}/slow:1")
        with refused(errno.EREMOTEIO):
            os.listdir(f"{name}/rootfs/")
        told = error_of(mounted.content / made.layers[0].digest)
        assert f"registry {front.authority} answered 504; try again later" in told
        fault.times = 0
        assert until((name / "rootfs/mark").read_bytes) == b"slow upstream/0\n"


@pytest.mark.parametrize("as_content", [False, True])
def test_download_resumes_after_upstream_closes_the_connection(
    mounted: Mounted, tmp_path: Path, as_content: bool
) -> None:
    mark = f"cut-{int(as_content)}"
    made, data = noisy(mark)
    with FakeRegistry() as registry, nginx(tmp_path / "nginx", passing_to(registry.host)) as front:
        made.add_to(registry, mark, "1")
        registry.fault(cut_at(CUT), made.layers[0].digest)
        name = mounted.image(f"{front.authority}/{mark}:1")
        if as_content:
            assert (name / "layers/0").read_bytes() == made.layers[0].blob
        else:
            assert (name / "rootfs/noise").read_bytes() == data
        ranges = [one.range for one in registry.log if made.layers[0].digest in one.path]
        assert ranges == [None, f"bytes={CUT}-{len(made.layers[0].blob) - 1}"]


def test_compression_by_nginx_does_not_change_the_bytes(mounted: Mounted, tmp_path: Path) -> None:
    made = small("compressing")
    settings = ("gzip on", "gzip_types *", "gzip_proxied any", "gzip_min_length 1", "gzip_vary on")
    with FakeRegistry() as registry, nginx(tmp_path / "nginx", passing_to(registry.host, *settings)) as front:
        made.add_to(registry, "compressing", "1")
        name = mounted.image(f"{front.authority}/compressing:1")
        assert (name / "manifest.json").read_bytes() == made.document
        assert (name / "config.json").read_bytes() == made.config
        assert (name / "rootfs/mark").read_bytes() == b"compressing/0\n"
