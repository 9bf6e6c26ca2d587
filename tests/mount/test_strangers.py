"""Registries whose images share digests: a lying or dead registry must not damage or delay images of another."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.oci.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from imgfs.oci.digest import Digest
from imgfs.testing.faults import stall
from imgfs.testing.images import File, image, index, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import PATIENCE, Mounted

SHARED = layer([File("etc/shared", b"shared\n")])
HONEST = image([SHARED, layer([File("etc/hi", b"hi\n")])])


@pytest.fixture
def stranger() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


def lie(registry: FakeRegistry, digest: str, size: int, media_type: str) -> str:
    """Serve a manifest that states a false size or media type for this digest, and return the image name."""
    made = image([])
    registry.add_blob(made.config)
    config = {"mediaType": OCI_CONFIG, "digest": Digest.of(made.config), "size": len(made.config)}
    layers = [{"mediaType": media_type, "digest": digest, "size": size}]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    registry.add_manifest("e", "t", json.dumps(document).encode(), OCI_MANIFEST)
    return f"{registry.host}/e:t"


def test_a_lie_about_another_images_manifest_harms_only_the_liar(
    mounted: Mounted, registry: FakeRegistry, stranger: FakeRegistry
) -> None:
    index([HONEST]).add_to(registry, "h", "t")
    os.listdir(mounted.image(lie(stranger, HONEST.digest, 5, OCI_LAYER)))
    assert (mounted.rootfs(f"{registry.host}/h:t") / "etc/hi").read_bytes() == b"hi\n"
    assert stranger.requests("blob") == 0


def test_a_lie_about_another_images_layer_does_not_change_its_size(
    mounted: Mounted, registry: FakeRegistry, stranger: FakeRegistry
) -> None:
    HONEST.add_to(registry, "h", "t")
    os.listdir(mounted.image(lie(stranger, SHARED.digest, 5, f"{OCI_LAYER}+gzip")))
    assert (mounted.image(f"{registry.host}/h:t") / "layers/0").stat().st_size == len(SHARED.blob)
    assert (mounted.image(f"{registry.host}/h:t") / "layers/0").read_bytes() == SHARED.blob


def test_a_blob_missing_in_one_registry_is_served_by_another_at_once(
    mounted: Mounted, registry: FakeRegistry, stranger: FakeRegistry
) -> None:
    HONEST.add_to(registry, "h", "t")
    bad = lie(stranger, SHARED.digest, len(SHARED.blob), f"{OCI_LAYER}+gzip")
    with pytest.raises(OSError) as caught:
        os.listdir(mounted.rootfs(bad) / ".")
    assert caught.value.errno in (errno.ENOENT, errno.EBADMSG)
    assert (mounted.rootfs(f"{registry.host}/h:t") / "etc/shared").read_bytes() == b"shared\n"


def test_a_dead_registry_that_shares_a_layer_delays_no_other_image(
    mounted: Mounted, registry: FakeRegistry, stranger: FakeRegistry
) -> None:
    HONEST.add_to(registry, "h", "t")
    image([SHARED, layer([File("x", b"x\n")])]).add_to(stranger, "x", "t")
    stranger.fault(stall(), "/blobs/", times=None)
    with waiting("cat", mounted.rootfs(f"{stranger.host}/x:t") / "x"):
        assert stranger.valve.wait_arrival()
        assert output("cat", mounted.rootfs(f"{registry.host}/h:t") / "etc/shared") == b"shared\n"


def test_a_waiting_name_does_not_delay_another_name_of_its_directory(mounted: Mounted, registry: FakeRegistry) -> None:
    HONEST.add_to(registry, "h", "t")
    registry.fault(stall(), "/manifests/stuck", times=None)
    directory = mounted.image(f"{registry.host}/")
    with waiting("stat", directory / "h:stuck"):
        assert registry.valve.wait_arrival()
        assert output("stat", "-L", "-c", "%F", directory / "h:t") == b"directory\n"
        assert output("ls", directory) == b"h:t\n"


@contextmanager
def waiting(*command: str | Path) -> Iterator[None]:
    """Run a process that waits for a registry, and kill it at the end of the context."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def output(*command: str | Path) -> bytes:
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True).stdout
