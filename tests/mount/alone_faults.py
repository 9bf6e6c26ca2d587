"""Redirects to forbidden addresses, and unreachable hosts, through a real mount.

test_faults.py runs this file in a separate network namespace. The loopback interface of the namespace has the addresses
of `PUBLIC` and `TRAPS`. A fake registry listens at each of them.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.testing.faults import Fault, redirect
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import CONFIG, assert_verified, error_of, refused, small, until
from tests.mount.test_faults import ADVICE
from tests.support.isolation import settle
from tests.support.mounted import Mounted
from tests.support.programs import run

PUBLIC = "93.184.216.34"
TRAPS = {"link-local": "169.254.169.254", "private": "10.1.2.3", "loopback": "127.0.0.1"}
NO_ROUTE, SWALLOWED, UNKNOWN = "151.101.1.70", "151.101.1.71", "registry.invalid"
DEAD = {NO_ROUTE: errno.EHOSTUNREACH, SWALLOWED: errno.ETIMEDOUT, UNKNOWN: errno.EHOSTUNREACH}
"""Unreachable hosts: an address without a route, an address that drops packets, and a name that does not resolve."""
LIMITS = "[plugins.registry.http]\nconnect_seconds = 0.5\ntries = 2\n"
BOUND = 20.0


@dataclass(frozen=True, slots=True)
class Struck:
    """An image that was read during a fault, and the bytes that it must give after the fault ends."""

    name: Path
    mark: bytes
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Scene:
    """Two registries at a public address (one requires tokens), the traps, and a mount that may use plain HTTP."""

    registry: FakeRegistry
    guarded: FakeRegistry
    traps: dict[str, FakeRegistry]
    mounted: Mounted
    struck: list[Struck]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    settle([PUBLIC, *TRAPS.values()])
    run("ip", "route", "add", f"{SWALLOWED}/32", "dev", "lo")
    config = f"{CONFIG}plain_http = {json.dumps([PUBLIC, *DEAD])}\n{LIMITS}"
    with ExitStack() as stack:
        registry = stack.enter_context(FakeRegistry(address=PUBLIC))
        guarded = stack.enter_context(FakeRegistry(address=PUBLIC, token=True))
        traps = {name: stack.enter_context(FakeRegistry(address=address)) for name, address in TRAPS.items()}
        mounted = stack.enter_context(Mounted(tmp_path_factory.mktemp("alone"), config))
        mounted.start()
        yield Scene(registry, guarded, traps, mounted, [])
        assert {name: trap.requests() for name, trap in traps.items()} == dict.fromkeys(traps, 0)
        assert_verified(mounted.state)
        assert "canary" not in mounted.log()


def assert_told(told: str, *words: str) -> None:
    assert all(word in told for word in words), told
    assert ADVICE.search(told.rpartition(";")[2]), told
    assert "canary" not in told


@pytest.mark.parametrize("where", TRAPS)
def test_redirect_of_a_manifest_to_an_internal_address_is_refused(scene: Scene, where: str) -> None:
    repository, made = f"name-{where}", small(f"name {where}")
    made.add_to(scene.registry, repository, "1")
    fault = scene.registry.fault(redirect(f"{scene.traps[where].url}/x?canary"), f"/{repository}/", times=None)
    name = scene.mounted.image(f"{scene.registry.host}/{repository}:1")
    with refused(errno.EREMOTEIO):
        os.stat(name)
    assert_told(error_of(name.parent), f"{scene.traps[where].host} is a {where} address", repository)
    scene.struck.append(Struck(name, f"name {where}/0\n".encode(), fault))


@pytest.mark.parametrize("where", TRAPS)
def test_redirect_of_a_layer_to_an_internal_address_is_refused(scene: Scene, where: str) -> None:
    repository, made = f"layer-{where}", small(f"layer {where}")
    layer = made.layers[0].digest
    made.add_to(scene.registry, repository, "1")
    fault = scene.registry.fault(redirect(f"{scene.traps[where].url}/x?canary"), layer, times=None)
    name = scene.mounted.image(f"{scene.registry.host}/{repository}:1")
    with refused(errno.EREMOTEIO):
        os.listdir(f"{name}/rootfs/")
    assert_told(error_of(scene.mounted.content / layer), f"{scene.traps[where].host} is a {where} address", repository)
    scene.struck.append(Struck(name, f"layer {where}/0\n".encode(), fault))


@pytest.mark.parametrize("where", TRAPS)
def test_token_endpoint_at_an_internal_address_is_refused(scene: Scene, where: str) -> None:
    repository, made = f"token-{where}", small(f"token {where}")
    made.add_to(scene.guarded, repository, "1")
    name = scene.mounted.image(f"{scene.guarded.host}/{repository}:1")
    scene.guarded.realm = f"{scene.traps[where].url}/token?canary"
    with refused(errno.EREMOTEIO):
        os.stat(name)
    assert_told(error_of(name.parent), f"{scene.traps[where].host} is a {where} address", repository)
    scene.guarded.realm = ""
    scene.struck.append(Struck(name, f"token {where}/0\n".encode(), None))


@pytest.mark.parametrize("host", DEAD)
def test_unreachable_registry_is_reported_in_time(scene: Scene, host: str) -> None:
    began = time.monotonic()
    with refused(DEAD[host]):
        os.stat(scene.mounted.image(f"{host}:5000/box:1"))
    assert time.monotonic() - began < BOUND
    assert_told(error_of(scene.mounted.image(f"{host}:5000")), f"{host}:5000")
    assert (scene.mounted.path / "content").is_dir()


@pytest.mark.parametrize("host", DEAD)
def test_unreachable_storage_is_reported_in_time(scene: Scene, host: str) -> None:
    repository, made = f"far-{host}", small(f"far {host}")
    layer = made.layers[0].digest
    made.add_to(scene.registry, repository, "1")
    fault = scene.registry.fault(redirect(f"http://{host}/x?canary"), layer, times=None)
    name, began = scene.mounted.image(f"{scene.registry.host}/{repository}:1"), time.monotonic()
    with refused(DEAD[host]):
        os.listdir(f"{name}/rootfs/")
    assert time.monotonic() - began < BOUND
    assert_told(error_of(scene.mounted.content / layer), host)
    scene.struck.append(Struck(name, f"far {host}/0\n".encode(), fault))


@pytest.mark.parametrize("host", DEAD)
def test_unreachable_token_endpoint_is_reported_in_time(scene: Scene, host: str) -> None:
    repository, made = f"realm-{host}", small(f"realm {host}")
    made.add_to(scene.guarded, repository, "1")
    name, began = scene.mounted.image(f"{scene.guarded.host}/{repository}:1"), time.monotonic()
    scene.guarded.realm = f"http://{host}/token?canary"
    with refused(DEAD[host]):
        os.stat(name)
    assert time.monotonic() - began < BOUND
    assert_told(error_of(name.parent), host, repository)
    scene.guarded.realm = ""
    scene.struck.append(Struck(name, f"realm {host}/0\n".encode(), None))


def test_every_image_is_readable_after_the_faults_end(scene: Scene) -> None:
    assert scene.struck
    for one in scene.struck:
        if one.fault is not None:
            one.fault.times = 0
    for one in scene.struck:
        assert until((one.name / "rootfs/mark").read_bytes) == one.mark
