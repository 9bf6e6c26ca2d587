"""Uploads to a real docker-registry, over connections that break and through a proxy with limits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from imgfs.errors import RegistryFailed
from imgfs.registry.client import Registry
from imgfs.registry.limits import Limits
from tests.registry.push.pushing import Bytes
from tests.support.cutting import CuttingProxy, cutting_proxy
from tests.support.nginx import nginx, passing_to
from tests.support.servers import DockerRegistry, docker_registry

CHUNK = 1 << 20
HALF = CHUNK // 2


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as real:
        yield real


@pytest.fixture
def proxy(real: DockerRegistry) -> Iterator[CuttingProxy]:
    with cutting_proxy(real.host) as proxy:
        yield proxy


def stored(host: str, repository: str, blob: Bytes) -> bool:
    """Return whether the registry returns exactly these bytes."""
    connection = HTTPConnection(host)
    connection.request("GET", f"/v2/{repository}/blobs/{blob.descriptor.digest}")
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status == 200 and data == blob.data


@pytest.mark.parametrize(
    ("size", "cuts"),
    [
        (CHUNK, []),
        (CHUNK, [HALF]),
        (4 * CHUNK, []),
        (4 * CHUNK, [HALF]),
        (4 * CHUNK, [2 * CHUNK + HALF, HALF]),
        (0, []),
    ],
)
async def test_whatever_breaks_the_blob_gets_there(
    real: DockerRegistry, proxy: CuttingProxy, size: int, cuts: list[int]
) -> None:
    blob = Bytes(random.Random(size + len(cuts)).randbytes(size))
    proxy.cuts.extend(cuts)
    async with Registry(limits=Limits(chunk=CHUNK)) as registry:
        destination = await registry.destination(proxy.host, "broken/box")
        await destination.upload(blob.descriptor, blob.read, lambda offset: None)
    assert proxy.cuts == []
    assert stored(real.host, "broken/box", blob)


async def test_a_proxy_that_limits_requests_is_told(real: DockerRegistry, tmp_path: Path) -> None:
    blob = Bytes(random.Random(9).randbytes(4 * CHUNK))
    with nginx(tmp_path / "nginx", passing_to(real.host, "client_max_body_size 1m")) as proxy:
        async with Registry(limits=Limits(chunk=3 * CHUNK)) as registry:
            destination = await registry.destination(proxy.authority, "limited/box")
            with pytest.raises(RegistryFailed, match=f"413 to {3 * CHUNK} bytes"):
                await destination.upload(blob.descriptor, blob.read, lambda offset: None)
        async with Registry(limits=Limits(chunk=CHUNK)) as registry:
            destination = await registry.destination(proxy.authority, "limited/box")
            await destination.upload(blob.descriptor, blob.read, lambda offset: None)
    assert stored(real.host, "limited/box", blob)
