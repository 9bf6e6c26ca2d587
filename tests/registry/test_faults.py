"""The fault table: the number of requests that each fault costs, and the error that the reader gets."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass

import pytest
from trio.testing import MockClock

from imgfs.errors import (
    AccessDenied,
    ImgfsError,
    Malformed,
    NotFound,
    RateLimited,
    RegistryFailed,
    RemoteError,
    TimedOut,
    TooLarge,
    Unreachable,
)
from imgfs.oci.descriptor import OCI_MANIFEST
from imgfs.oci.reference import Reference
from imgfs.registry.limits import Limits
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import BLOB, MANIFEST, Scene

ASKED = ["manifest", "tag", "blob"]


@dataclass(frozen=True)
class Row:
    """A permanent fault: the error that it causes, and the number of requests until then."""

    name: str
    action: Action
    error: type[ImgfsError]
    requests: int


ROWS = [
    Row("reset before headers", faults.close(), Unreachable, 3),
    Row("404", faults.status(404), NotFound, 1),
    Row("403", faults.status(403), AccessDenied, 1),
    Row("401 without a challenge", faults.status(401), AccessDenied, 1),
    Row("401 that wants a login", faults.status(401, WWW_Authenticate='Basic realm="x"'), AccessDenied, 1),
    Row("429", faults.status(429), RateLimited, 3),
    Row("429 with a long Retry-After", faults.status(429, Retry_After="25"), RateLimited, 4),
    Row("503 with a long Retry-After", faults.status(503, Retry_After="25"), RegistryFailed, 4),
    Row("500", faults.status(500), RegistryFailed, 3),
    Row("502", faults.status(502), RegistryFailed, 3),
    Row("400", faults.status(400), RegistryFailed, 1),
    Row("204", faults.status(204), RegistryFailed, 1),
    Row("302 to nowhere", faults.status(302), RegistryFailed, 1),
    Row("redirect to another scheme", faults.redirect("ftp://127.0.0.1/x"), RegistryFailed, 1),
    Row("redirect to a file", faults.redirect("file:///etc/passwd"), RegistryFailed, 1),
    Row("redirect with a user", faults.redirect("http://root:x@127.0.0.1/x"), RegistryFailed, 1),
    Row("redirect that is no address", faults.redirect("http://[::1"), RegistryFailed, 1),
    Row("redirect to a bad port", faults.redirect("http://127.0.0.1:99999/"), RegistryFailed, 1),
    Row("redirect to itself", faults.redirect("?"), RegistryFailed, 1),
    Row("redirect to metadata", faults.redirect("http://169.254.169.254/latest/"), RegistryFailed, 1),
    Row("redirect to a private network", faults.redirect("http://10.0.0.1/"), RegistryFailed, 1),
    Row("too many headers", faults.status(200, X_Padding="x" * 65000, X_More="y" * 2000), TooLarge, 1),
    Row("endless headers", faults.status(200, **{f"X_{n}": "x" * 60000 for n in range(20)}), TooLarge, 1),
]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_a_fault_that_stays_is_its_error(mock_clock: MockClock, scene: Scene, row: Row, asked: str) -> None:
    scene.fake.fault(row.action, times=None)
    with pytest.raises(row.error) as caught:
        await scene.ask(asked)
    assert type(caught.value) is row.error
    assert scene.fake.requests() == row.requests
    assert scene.fake.host.split(":")[0] in caught.value.message


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    "action",
    [faults.close(), faults.status(500), faults.status(503, Retry_After="3"), faults.status(429, Retry_After="3")],
)
async def test_a_fault_that_passes_is_not_seen(mock_clock: MockClock, scene: Scene, action: Action, asked: str) -> None:
    scene.fake.fault(action, times=2)
    assert await scene.ask(asked) == scene.expected(asked)
    assert scene.fake.requests() == 3


@pytest.mark.parametrize("asked", ["manifest", "blob"])
async def test_a_login_page_is_malformed_and_its_beginning_logged(
    mock_clock: MockClock, scene: Scene, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene.fake.fault(faults.html())
    with caplog.at_level(logging.WARNING, "imgfs"), pytest.raises(Malformed, match="text/html"):
        await scene.ask(asked)
    (shown,) = [vars(record)["start"] for record in caplog.records if "start" in vars(record)]
    assert shown.startswith(b"<!DOCTYPE html>")
    assert len(shown) == 200


@pytest.mark.parametrize("asked", ASKED)
async def test_no_answer_is_a_timeout(mock_clock: MockClock, scene: Scene, asked: str) -> None:
    scene.fake.fault(faults.stall(), times=None)
    async with scene.impatience(31):
        with pytest.raises(TimedOut):
            await scene.ask(asked)
    assert scene.fake.requests() == 3


@pytest.mark.parametrize("asked", ["manifest", "blob"])
async def test_a_stalled_body_is_asked_for_again(mock_clock: MockClock, scene: Scene, asked: str) -> None:
    scene.fake.fault(faults.stall(after=5), times=2)
    async with scene.impatience(31):
        assert await scene.ask(asked) == scene.expected(asked)


@pytest.mark.parametrize("asked", ["manifest", "blob"])
async def test_a_trickle_is_a_timeout_in_two_minutes(mock_clock: MockClock, scene: Scene, asked: str) -> None:
    scene.fake.fault(faults.trickle(), times=None)
    before = scene.clock.current_time()
    async with scene.impatience(21, release=True):
        with pytest.raises(TimedOut):
            await scene.ask(asked)
    assert scene.clock.current_time() - before <= 130
    assert scene.fake.requests() == 2


async def test_a_refused_connection_is_unreachable_soon(mock_clock: MockClock, scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        host = f"127.0.0.1:{nobody.getsockname()[1]}"
    with pytest.raises(Unreachable, match="refused"):
        await scene.registry.manifest(Reference(host, "a", "1"))
    assert len(scene.slept) == 2
    assert sum(scene.slept) < 1.5


async def test_an_unknown_name_is_unreachable(mock_clock: MockClock, scene: Scene) -> None:
    with pytest.raises(Unreachable, match=r"nowhere\.invalid"):
        await scene.registry.manifest(Reference("nowhere.invalid", "a", "1"))


async def test_retry_after_is_obeyed(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.status(429, Retry_After="17"), times=2)
    await scene.ask("manifest")
    assert scene.slept == [17, 17]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("seconds", ["1", "2", "7"])
async def test_a_call_that_is_told_to_wait_for_ever_makes_ten_requests_in_a_minute_at_most(
    mock_clock: MockClock, scene: Scene, asked: str, code: int, seconds: str
) -> None:
    scene.fake.fault(faults.status(code, Retry_After=seconds), times=None)
    with pytest.raises(RemoteError):
        await scene.ask(asked)
    assert 7 <= scene.fake.requests() <= 10
    assert 40 <= sum(scene.slept) <= 60.1


async def test_retry_after_is_obeyed_for_a_minute_at_most(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.status(429, Retry_After="3600"), times=None)
    with pytest.raises(RateLimited):
        await scene.ask("manifest")
    assert scene.slept == [60]


async def test_a_pause_is_for_every_call_to_that_host(
    mock_clock: MockClock, scene: Scene, storage: FakeRegistry
) -> None:
    scene.fake.fault(faults.status(429, Retry_After="50"), times=None)
    with pytest.raises(RateLimited):
        await scene.ask("manifest")
    scene.fake.reset()
    scene.fake.fault(faults.status(503, Retry_After="5"))
    waits = len(scene.slept)
    storage.add_manifest("a", "1", MANIFEST)
    await scene.registry.manifest(Reference(storage.host, "a", "1"))
    assert len(scene.slept) == waits
    assert await scene.ask("blob") == BLOB
    assert scene.slept[waits:] == [5]


@pytest.mark.parametrize("announced", [True, False])
async def test_a_manifest_over_the_limit_is_not_read_on(mock_clock: MockClock, scene: Scene, announced: bool) -> None:
    scene.fake.fault(faults.huge((4 << 20) + 1, announced=announced))
    with pytest.raises(TooLarge):
        await scene.ask("manifest")


async def test_a_manifest_at_the_limit_is_read(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.status(200, bytes(4 << 20), Content_Type=OCI_MANIFEST))
    assert len(await scene.ask("manifest")) == 4 << 20


async def test_an_endless_manifest_ends_at_the_limit(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.endless())
    scene.fake.add_manifest("team/app", "1", b" " * 100_000)
    with pytest.raises(TooLarge):
        await scene.ask("manifest")


async def test_a_cut_manifest_is_asked_for_again(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.cut_at(3), times=2)
    assert await scene.ask("manifest") == MANIFEST
    scene.fake.fault(faults.cut_at(3), times=None)
    with pytest.raises(Unreachable):
        await scene.ask("manifest")
    assert scene.fake.requests() == 6


async def test_a_message_names_what_failed_where_and_what_to_do(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.status(500, b'{"errors":[{"code":"UNKNOWN"}]}'), times=None)
    with pytest.raises(RegistryFailed) as caught:
        await scene.ask("manifest")
    assert caught.value.message == (
        f"{scene.reference}: registry {scene.fake.host} answered 500 UNKNOWN; try again later"
    )


async def test_limits_are_per_registry(mock_clock: MockClock, fake: FakeRegistry) -> None:
    scene = Scene(mock_clock, fake, Limits(tries=1, manifest=10))
    async with scene.registry:
        with pytest.raises(TooLarge):
            await scene.ask("manifest")
        fake.fault(faults.close())
        with pytest.raises(Unreachable):
            await scene.ask("blob")
    assert fake.requests() == 2
