"""Run every case of fault_table.py through a real mount.

The tests check the errno, the error message, and that the read succeeds after the fault ends. All cases run
concurrently in one fixture, because faults in production are also concurrent. Each test checks the outcome of one case.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.build import index
from imgfs.testing.faults import Fault, redirect
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from tests.mount.fault_table import CANARY, GOOD, Case, cases
from tests.mount.scene import CONFIG, assert_verified, error_of, refused, small, until
from tests.support.isolation import run_alone
from tests.support.mounted import Mounted

BOUND = 60.0
"""Deadline for each read, in seconds. The timeouts of the mount add up to a tenth of this value."""
ASKED = 40
"""Upper limit of requests per fault. A blob that arrives in very small pieces needs the most requests."""
READERS = 24
RSS_LIMIT = 400 << 20
DRIP = 0.05
RESTING = ("limited", "unavailable")
"""Grounds where each case makes imgfs pause all requests to the host, so the cases delay each other."""
LIMITS = """[plugins.registry.http]
connect_seconds = 2.0
silence_seconds = 2.0
slow_seconds = 1.5
pause_seconds = 0.3
tries = 2
"""
ADVICE = re.compile(r"\b(check|try|read|pull|push|report|tell|wait|login|look|see)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ground:
    """The registries of a case: an open registry, its redirect target, and a registry that requires tokens."""

    plain: FakeRegistry
    storage: FakeRegistry
    guarded: FakeRegistry

    @property
    def all(self) -> tuple[FakeRegistry, ...]:
        return self.plain, self.storage, self.guarded


@dataclass(slots=True)
class World:
    """A mount, and the registries for each ground."""

    mount: Mounted
    grounds: dict[str, Ground]


@dataclass(frozen=True, slots=True)
class Struck:
    """An object that a faulty registry serves, with the read operation and the expected bytes."""

    read: Callable[[], bytes]
    expected: bytes
    digest: Digest
    """Digest that must not be in the content store after a failed read."""
    told: Callable[[], str]
    """Return the reported error message."""
    host: str
    """Host of the faulty registry."""
    fault: Fault


@dataclass(slots=True)
class Outcome:
    """Results of a case, during the fault and after the fault ended."""

    struck: Struck
    code: int = GOOD
    data: bytes = b""
    seconds: float = 0.0
    told: str = ""
    is_here: bool = False
    other: bytes | OSError = b""
    """Result of reading another image from the same registry during the fault."""
    again: bytes | OSError = b""
    told_again: str = ""


def strike(world: World, case: Case) -> Struck:
    """Publish a new image and inject the fault at the place of the case."""
    return {
        "index": _document,
        "manifest": _document,
        "touch": _touch,
        "config": _blob,
        "layer": _blob,
        "storage": _blob,
        "token": _token,
    }[case.place](world, case)


def _fault(registry: FakeRegistry, case: Case, match: str) -> Fault:
    if case.row.first is not None:
        registry.fault(case.row.first, match)
    return registry.fault(case.row.action, match, times=None)


def _document(world: World, case: Case) -> Struck:
    registry, image = world.grounds[case.row.ground].plain, small(case.mark)
    above = index([image])
    above.add_to(registry, case.mark, "1")
    name = world.mount.image(f"{registry.host}/{case.mark}:1")
    if case.place == "index":
        fault = _fault(registry, case, f"GET /v2/{case.mark}/manifests/1([?]|$)")
        read, document = (name / "index.json").read_bytes, above
        return Struck(read, document.document, document.digest, _logged(world, case), registry.host, fault)
    fault = _fault(registry, case, f"/manifests/{image.digest}([?]|$)")
    return Struck(
        (name / "manifest.json").read_bytes,
        image.document,
        image.digest,
        lambda: _told_of(name),
        registry.host,
        fault,
    )


def _told_of(name: Path) -> str:
    """Return the last error of the name.

    Fall back to the host if the name cannot be resolved because requests to the host are paused by another case.
    """
    try:
        return error_of(name)
    except OSError:
        return error_of(name.parent.parent)


def _touch(world: World, case: Case) -> Struck:
    registry, image = world.grounds[case.row.ground].plain, small(case.mark)
    image.add_to(registry, case.mark, "1")
    name = world.mount.image(f"{registry.host}/{case.mark}:1")
    os.readlink(name)
    fault = _fault(registry, case, f"HEAD /v2/{case.mark}/")

    def read() -> bytes:
        os.utime(name, follow_symlinks=False)
        return os.readlink(name).encode()

    expected = f"../../{image.digest}".encode()
    return Struck(read, expected, Digest.of(b"nothing"), _logged(world, case), registry.host, fault)


def _blob(world: World, case: Case) -> Struck:
    ground, image = world.grounds[case.row.ground], small(case.mark)
    image.add_to(ground.plain, case.mark, "1")
    name = world.mount.image(f"{ground.plain.host}/{case.mark}:1")
    if case.place == "config":
        read, expected = (name / "config.json").read_bytes, image.config
        digest = Digest.of(image.config)
    else:
        read, expected = (name / "rootfs/mark").read_bytes, f"{case.mark}/0\n".encode()
        digest = image.layers[0].digest
    at = ground.plain
    if case.place == "storage":
        at = ground.storage
        image.add_to(at, case.mark, "1")
        ground.plain.fault(redirect(f"{at.url}/v2/bucket/blobs/{digest}?{CANARY}"), digest, times=None)
    fault = _fault(at, case, digest)
    return Struck(read, expected, digest, lambda: error_of(world.mount.content / digest), at.host, fault)


def _token(world: World, case: Case) -> Struck:
    registry, image = world.grounds[case.row.ground].guarded, small(case.mark)
    image.add_to(registry, case.mark, "1")
    name = world.mount.image(f"{registry.host}/{case.mark}:1")
    fault = _fault(registry, case, f"/token.*%3A{quote(case.mark, safe='')}%3Apull")
    read = (name / "manifest.json").read_bytes
    return Struck(read, image.document, image.digest, _logged(world, case), registry.host, fault)


def _logged(world: World, case: Case) -> Callable[[], str]:
    """Return a function that reads the last failure of the case from the log.

    The xattr of the host is not usable, because all names of the host share it and many cases run concurrently.
    """
    mine = re.compile(rf"{re.escape(case.mark)}(?![\w-])")

    def told() -> str:
        lines = [json.loads(line) for line in world.mount.log().splitlines() if case.mark in line]
        errors = [one["error"] for one in lines if one["event"] == "failed" and mine.search(one["error"])]
        return errors[-1] if errors else ""

    return told


def meet(world: World, case: Case) -> Outcome:
    """Read during the fault."""
    struck = strike(world, case)
    outcome, began = Outcome(struck), time.monotonic()
    try:
        outcome.data = struck.read()
    except OSError as error:
        outcome.code = error.errno or -1
    outcome.seconds = time.monotonic() - began
    outcome.told = struck.told()
    outcome.is_here = struck.digest in os.listdir(world.mount.content)
    outcome.other = _tried(lambda: _other(world, case))
    return outcome


def _other(world: World, case: Case) -> bytes:
    """Read another image from the same kind of registry.

    For grounds with Retry-After, use the default ground, because requests to the faulty host are paused.
    """
    ground = world.grounds["" if case.row.ground in RESTING else case.row.ground]
    registry, image = ground.guarded if case.place == "token" else ground.plain, small(f"well/{case.mark}")
    image.add_to(registry, f"well/{case.mark}", "1")
    return (world.mount.image(f"{registry.host}/well/{case.mark}:1") / "manifest.json").read_bytes()


def _tried(read: Callable[[], bytes]) -> bytes | OSError:
    """Return the error instead of raising it, so the other cases continue. The test of the case checks the error."""
    try:
        return read()
    except OSError as error:
        return error


def recover(outcome: Outcome) -> None:
    """End the fault and retry the read until the cached failure expires."""
    outcome.struck.fault.times = 0
    outcome.again = _tried(lambda: until(outcome.struck.read))
    outcome.told_again = outcome.struck.told()


@contextmanager
def dripping(registries: tuple[FakeRegistry, ...]) -> Iterator[None]:
    """Release the bytes of trickled responses from these registries, one every `DRIP` seconds."""

    def drip(registry: FakeRegistry) -> None:
        while stalled := registry.valve.wait_arrival():
            time.sleep(DRIP)
            stalled.release()

    threads = [Thread(target=drip, args=(registry,)) for registry in registries]
    for thread in threads:
        thread.start()
    yield
    for registry in registries:
        registry.valve.open()
    for thread in threads:
        thread.join()


def peak(mount: Mounted) -> int:
    """Return the peak resident memory of the daemon, in bytes."""
    text = Path(f"/proc/{mount.pid()}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        grounds = {
            name: Ground(*(stack.enter_context(FakeRegistry(token=guarded)) for guarded in (False, False, True)))
            for name in ("", "limited", "unavailable", "dripping")
        }
        mount = stack.enter_context(Mounted(directory, f"{CONFIG}{LIMITS}"))
        mount.start()
        stack.enter_context(dripping(grounds["dripping"].all))
        yield World(mount, grounds)
        assert peak(mount) < RSS_LIMIT
        assert sorted(os.listdir(directory)) == ["mnt", "state"]
        assert_verified(mount.state)
        assert "canary" not in mount.log()
        assert "Traceback" not in mount.log()


@pytest.fixture(scope="module")
def outcomes(world: World, request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """Run the selected cases concurrently and return their outcomes by case mark."""
    wanted = [one.callspec.params["case"] for one in request.session.items if _asks_for_a_case(one)]
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(lambda case: meet(world, case), wanted)
        met = dict(zip((case.mark for case in wanted), found, strict=True))
        list(readers.map(recover, met.values()))
    return met


def _asks_for_a_case(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.function is test_fault_gives_expected_errno_and_recovers


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.mark)
def test_fault_gives_expected_errno_and_recovers(outcomes: dict[str, Outcome], case: Case) -> None:
    found = outcomes[case.mark]
    code = errno.errorcode.get(found.code, str(found.code))
    assert code == errno.errorcode.get(case.code, "0"), found.told
    assert found.seconds < BOUND
    assert found.struck.fault.met in range(1, ASKED) or case.row.ground in RESTING, found.told
    if case.code:
        assert_told(case, found)
        assert not found.is_here, "the content store kept unverified bytes"
    else:
        assert found.data == found.struck.expected
    image = small(f"well/{case.mark}")
    assert found.other == image.document
    assert found.again == found.struck.expected
    assert "canary" not in found.told_again


def assert_told(case: Case, found: Outcome) -> None:
    """Check that the message names the host, the problem and the next step, and contains no secret."""
    if "redirect" not in case.row.name and case.row.ground not in RESTING:
        assert found.struck.host in found.told, found.told
    assert case.row.says in found.told
    assert ADVICE.search(found.told.rpartition(";")[2]), found.told
    assert "canary" not in found.told


def test_registry_that_rejects_its_own_tokens_gives_eacces_after_one_retry(world: World) -> None:
    registry, image = world.grounds[""].guarded, small("loop")
    image.add_to(registry, "loop", "1")
    layer = image.layers[0].digest
    challenge = Reply(401).headed(WWW_Authenticate=f'Bearer realm="{registry.url}/token"')
    fault = registry.fault(lambda _: challenge, layer, times=None)
    name = world.mount.image(f"{registry.host}/loop:1")
    with refused(errno.EACCES):
        os.listdir(f"{name}/rootfs/")
    assert fault.met == 2
    assert f"registry {registry.host} answered 401" in error_of(world.mount.content / layer)
    fault.times = 0
    assert until((name / "rootfs/mark").read_bytes) == b"loop/0\n"


def test_network_faults_in_an_isolated_network() -> None:
    run_alone(Path(__file__).with_name("alone_faults.py"))
