"""Random faults at a registry and its mirrors.

Each read returns the correct bytes or a documented errno. After the faults end, every read succeeds.
"""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.testing import faults
from imgfs.testing.build import AMD64, Image, image, index, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import Action, Fault
from imgfs.testing.registry import FakeRegistry
from tests.mount.fault_table import ROWS
from tests.mount.scene import CONFIG, assert_verified, until
from tests.mount.test_faults import LIMITS
from tests.support.mounted import Mounted

HOST = "registry.example"
IMAGES = 10
READERS = 8
READS = 4
"""Reads of each image during the faults."""
SIZES = (3000, 1_200_000, 3 << 20)
"""File sizes in bytes: below and above the limit for keeping a copy, and large enough to bypass httpx."""
ERRNOS = {
    errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EBADMSG, errno.EFBIG, errno.EREMOTEIO, errno.EACCES, errno.EDQUOT,
    errno.EOPNOTSUPP, errno.ENOENT,
}  # fmt: skip
ACTIONS = [row.action for row in ROWS if row.ground == ""]


@dataclass(frozen=True, slots=True)
class Job:
    """An image and the faults injected into its requests."""

    name: Path
    image: Image
    noise: bytes
    faults: list[Fault]


@pytest.fixture(params=[0, 2], ids=["alone", "mirrors"])
def hosts(request: pytest.FixtureRequest) -> Iterator[list[FakeRegistry]]:
    """Start the mirrors and the registry. The registry is the last item."""
    with ExitStack() as stack:
        yield [stack.enter_context(FakeRegistry()) for _ in range(request.param + 1)]


@pytest.fixture
def mounted(tmp_path: Path, hosts: list[FakeRegistry]) -> Iterator[Mounted]:
    (tmp_path / "certs.d" / HOST).mkdir(parents=True)
    mirrors = "".join(f'[host."{one.url}"]\ncapabilities = ["pull", "resolve"]\n' for one in hosts[:-1])
    (tmp_path / "certs.d" / HOST / "hosts.toml").write_text(f'server = "{hosts[-1].url}"\n{mirrors}')
    with Mounted(tmp_path, f"{CONFIG}hosts_path = [{json.dumps(str(tmp_path / 'certs.d'))}]\n{LIMITS}") as mount:
        mount.start()
        yield mount


def some_action(chance: random.Random) -> Action:
    """Choose a fault from the table, or a fault in the middle of a long body."""
    in_the_middle = chance.choice([100_000, 700_000, 1_100_000, 2_900_000])
    cuts = [faults.cut_at(in_the_middle), faults.reset_at(in_the_middle), faults.stall(in_the_middle)]
    return chance.choice([chance.choice(ACTIONS), chance.choice(cuts)])


def prepare(mounted: Mounted, hosts: list[FakeRegistry], chance: random.Random, number: int) -> Job:
    noise = chance.randbytes(chance.choice(SIZES))
    made = image([layer([File("noise", noise)], chance.choice(["gzip", "none"]))], platform=AMD64)
    repository, struck = f"any{number}", list[Fault]()
    for host in hosts:
        (index([made]) if number % 2 else made).add_to(host, repository, "1")
        for _ in range(chance.randrange(1, 5)):
            what = chance.choice([f"/{repository}/", made.layers[0].digest])
            struck.append(host.fault(some_action(chance), what, times=chance.choice([1, 2, 3, None])))
    return Job(mounted.image(f"{HOST}/{repository}:1"), made, noise, struck)


def readings(job: Job) -> list[tuple[Callable[[], bytes], bytes]]:
    """Return the read operations of an image, each with its expected bytes."""
    return [
        ((job.name / "rootfs/noise").read_bytes, job.noise),
        ((job.name / "layers/0").read_bytes, job.image.layers[0].blob),
        ((job.name / "manifest.json").read_bytes, job.image.document),
    ]


def check(job: Job, seed: int) -> None:
    """Read during the faults and after the faults end."""
    chance = random.Random(seed)
    for read, expected in chance.choices(readings(job), k=READS):
        try:
            assert read() == expected
        except OSError as error:
            if error.errno not in ERRNOS:
                raise
    for fault in job.faults:
        fault.times = 0
    for read, expected in readings(job):
        assert until(read) == expected


@pytest.mark.parametrize("seed", [1, 2])
def test_random_faults_never_return_wrong_bytes(mounted: Mounted, hosts: list[FakeRegistry], seed: int) -> None:
    chance = random.Random(seed)
    jobs = [prepare(mounted, hosts, chance, number) for number in range(IMAGES)]
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(check, jobs, [chance.randrange(1 << 30) for _ in jobs]))
    assert_verified(mounted.state)
    assert "Traceback" not in mounted.log()
