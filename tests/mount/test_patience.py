"""A registry that stalls again after each part it sends: a reader's call ends, over config and layers together."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.faults import stall
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import CONFIG, refused, small
from tests.support.mounted import Mounted

CALL = 5.0
LIMITS = f"""[plugins.registry.http]
connect_seconds = 0.5
silence_seconds = 1.0
call_seconds = {CALL}
"""
"""A stall costs a second, and parts of 40 bytes leave room for many of them in a config and in a layer."""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path, CONFIG + LIMITS) as mounted:
        mounted.start()
        yield mounted


def seconds_of_a_refused_read(file: Path) -> float:
    began = time.monotonic()
    with refused(errno.ETIMEDOUT):
        file.read_bytes()
    return time.monotonic() - began


def test_a_call_ends_although_each_part_of_a_blob_comes(mounted: Mounted) -> None:
    with FakeRegistry() as registry:
        small("stalls").add_to(registry, "stalls", "1")
        name = mounted.image(f"{registry.host}/stalls:1")
        registry.fault(stall(40), "/blobs/", times=None)
        assert CALL - 2 < seconds_of_a_refused_read(name / "config.json") < CALL + 3
        registry.reset()
        time.sleep(2.5)
        assert (name / "rootfs" / "mark").read_bytes() == b"stalls/0\n"


def test_config_and_layer_share_the_time_of_one_call(mounted: Mounted) -> None:
    with FakeRegistry() as registry:
        made = small("both")
        made.add_to(registry, "both", "1")
        name = mounted.image(f"{registry.host}/both:1")
        registry.fault(stall(40), f"/blobs/{Digest.of(made.config)}", times=3)
        registry.fault(stall(40), f"/blobs/{made.layers[0].digest}", times=None)
        assert (name / "manifest.json").read_bytes() == made.document
        assert CALL - 2 < seconds_of_a_refused_read(name / "rootfs" / "mark") < CALL + 3
        assert registry.requests("blob") >= 6
