"""Anonymous bearer tokens: when they are fetched, how often, from where, and that they are not logged."""

from __future__ import annotations

import io
import logging
import traceback

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.errors import AccessDenied, ImgfsError, Malformed, RegistryFailed, TimedOut, TooLarge, Unreachable
from imgfs.log import JsonLines
from imgfs.oci.reference import Reference
from imgfs.registry.auth.grants import Challenge, parse_token, token_url
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene, kinds


@pytest.fixture
async def locked(mock_clock: MockClock, guarded: FakeRegistry):
    """A scene whose registry requires tokens."""
    scene = Scene(mock_clock, guarded)
    async with scene.registry:
        yield scene


async def test_the_first_call_fetches_a_token_and_the_next_use_it(mock_clock: MockClock, locked: Scene) -> None:
    assert await locked.ask("manifest") == MANIFEST
    assert kinds(locked.fake) == ["manifest", "token", "manifest"]
    assert await locked.ask("blob") == BLOB
    await locked.ask("tag")
    assert kinds(locked.fake)[3:] == ["blob", "tag"]
    assert "scope=repository%3Ateam%2Fapp%3Apull" in locked.fake.log[1].path
    assert "service=fake" in locked.fake.log[1].path


async def test_another_repository_needs_another_token(mock_clock: MockClock, locked: Scene) -> None:
    locked.fake.add_manifest("other/app", "1", MANIFEST)
    await locked.ask("manifest")
    await locked.registry.manifest(Reference(locked.fake.host, "other/app", "1"))
    assert locked.fake.requests("token") == 2
    assert sorted(locked.fake.tokens.values()) == ["repository:other/app:pull", "repository:team/app:pull"]


async def test_many_first_calls_fetch_one_token(mock_clock: MockClock, locked: Scene) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(locked.ask, "manifest")
    assert locked.fake.requests("token") == 1


async def test_many_first_calls_share_one_failure(mock_clock: MockClock, locked: Scene) -> None:
    locked.fake.fault(lambda reply: Reply(403, hold=-1), "/token", times=None)
    refused: list[ImgfsError] = []

    async def ask() -> None:
        with pytest.raises(AccessDenied) as caught:
            await locked.ask("manifest")
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await trio.to_thread.run_sync(locked.fake.valve.wait_arrival)
        while locked.fake.requests("manifest") < 5:
            await wait_all_tasks_blocked(0.01)
        await wait_all_tasks_blocked(0.02)
        locked.fake.release()
    assert len({error.message for error in refused}) == 1
    assert len(refused) == 5
    assert locked.fake.requests("token") == 1


async def test_a_cancelled_fetch_does_not_fail_other_waiters(mock_clock: MockClock, locked: Scene) -> None:
    locked.fake.fault(faults.stall(), "/token")
    leader = trio.CancelScope()

    async def lead() -> None:
        with leader:
            await locked.ask("manifest")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await trio.to_thread.run_sync(locked.fake.valve.wait_arrival)
        nursery.start_soon(locked.ask, "manifest")
        await wait_all_tasks_blocked(0.02)
        leader.cancel()
    assert locked.fake.requests("token") == 2


async def test_a_revoked_token_is_replaced_once(mock_clock: MockClock, locked: Scene) -> None:
    await locked.ask("manifest")
    locked.fake.revoke()
    assert await locked.ask("blob") == BLOB
    assert kinds(locked.fake)[3:] == ["blob", "token", "blob"]


async def test_a_fresh_token_that_is_refused_is_access_denied(mock_clock: MockClock, locked: Scene) -> None:
    challenge = f'Bearer realm="{locked.fake.url}/token"'
    locked.fake.fault(faults.status(401, WWW_Authenticate=challenge), "/v2/", times=None)
    with pytest.raises(AccessDenied, match="401"):
        await locked.ask("manifest")
    assert kinds(locked.fake) == ["manifest", "token", "manifest"]


async def test_a_token_is_dropped_before_it_expires(mock_clock: MockClock, locked: Scene) -> None:
    await locked.ask("manifest")
    locked.clock.jump(265)
    await locked.ask("manifest")
    assert locked.fake.requests("token") == 1
    locked.clock.jump(10)
    locked.fake.revoke()
    await locked.ask("manifest")
    assert "authorization" not in locked.fake.log[-3].headers
    assert locked.fake.requests("token") == 2


@pytest.mark.parametrize(
    ("action", "error", "requests"),
    [
        (faults.status(401), AccessDenied, 1),
        (faults.status(403), AccessDenied, 1),
        (faults.status(404), RegistryFailed, 1),
        (faults.status(500), RegistryFailed, 3),
        (faults.close(), Unreachable, 3),
        (faults.cut_at(4), Unreachable, 3),
        (faults.status(200, b"<html>"), Malformed, 1),
        (faults.status(200, b"[]"), Malformed, 1),
        (faults.status(200, b'{"token":""}'), Malformed, 1),
        (faults.status(200, b'{"token":7}'), Malformed, 1),
        (faults.status(200, b'{"token":"canary\\r\\nX-Evil: 1"}'), Malformed, 1),
        (faults.huge((1 << 20) + 1), TooLarge, 1),
        (faults.huge((1 << 20) + 1, announced=False), TooLarge, 1),
        (faults.redirect("gopher://x/"), RegistryFailed, 1),
        (faults.redirect("http://192.168.1.1/"), RegistryFailed, 1),
    ],
)
@pytest.mark.parametrize("asked", ["manifest", "blob"])
async def test_a_failing_token_endpoint_is_its_error(
    mock_clock: MockClock, locked: Scene, action: Action, error: type[ImgfsError], requests: int, asked: str
) -> None:
    locked.fake.fault(action, "/token", times=None)
    with pytest.raises(error) as caught:
        await locked.ask(asked)
    assert type(caught.value) is error
    assert "canary" not in caught.value.message
    assert locked.fake.requests("token") == requests
    assert locked.fake.requests(asked) == 1


async def test_a_silent_token_endpoint_is_a_timeout(mock_clock: MockClock, locked: Scene) -> None:
    locked.fake.fault(faults.stall(), "/token", times=None)
    async with locked.impatience(31):
        with pytest.raises(TimedOut):
            await locked.ask("blob")
    assert locked.fake.requests("token") == 3


@pytest.mark.parametrize(
    "realm",
    ["http://169.254.169.254/token", "file:///etc/shadow", "http://u:p@127.0.0.1/", "nonsense", "http://10.9.9.9/"],
)
async def test_a_realm_not_to_be_trusted_is_refused(mock_clock: MockClock, locked: Scene, realm: str) -> None:
    locked.fake.fault(faults.status(401, WWW_Authenticate=f'Bearer realm="{realm}"'), times=None)
    with pytest.raises(RegistryFailed):
        await locked.ask("manifest")
    assert locked.fake.requests() == 1


def test_a_realm_is_never_a_downgrade() -> None:
    with pytest.raises(RegistryFailed, match="https to http"):
        token_url(Challenge("bearer", {"realm": "http://auth.example/t"}), "https://r.example/v2/", "s")


def test_a_realm_keeps_its_own_query() -> None:
    challenge = Challenge("bearer", {"realm": "https://a.example/t?x=1", "service": "r example", "scope": "evil"})
    assert token_url(challenge, "https://r.example/v2/", "repository:a:pull") == (
        "https://a.example/t?x=1&service=r+example&scope=repository%3Aa%3Apull"
    )


@pytest.mark.parametrize(
    ("body", "until"),
    [
        (b'{"token":"t"}', 45),
        (b'{"access_token":"t","expires_in":300}', 270),
        (b'{"token":"t","expires_in":40}', 30),
        (b'{"token":"t","expires_in":-5}', 45),
        (b'{"token":"t","expires_in":"soon"}', 45),
        (b'{"token":"t","expires_in":1e300}', 86370),
    ],
)
def test_a_token_is_kept_for_less_than_its_lifetime(body: bytes, until: float) -> None:
    token = parse_token(body, 0.0, "token")
    assert (token.text, token.until) == ("t", until)
    assert "'t'" not in repr(token)


async def test_a_token_is_never_shown(mock_clock: MockClock, locked: Scene, storage: FakeRegistry) -> None:
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    loud = [logging.getLogger(name) for name in ("", "imgfs", "trio", "h11")]
    handler.setFormatter(JsonLines())
    try:
        for logger in loud:
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG)
        await locked.ask("manifest")
        url = f"{storage.url}/v2/b/blobs/{locked.blob.digest}?signature=canary-query"
        for action in (
            faults.status(500),
            faults.status(403),
            faults.cut_at(7),
            faults.redirect("http://10.0.0.1/?canary"),
        ):
            locked.fake.reset()
            locked.fake.fault(faults.redirect(url), "/blobs/", times=None)
            storage.reset()
            storage.fault(action, times=None)
            with pytest.raises(ImgfsError) as caught:
                await locked.ask("blob")
            shown.write("".join(traceback.format_exception(caught.value)))
    finally:
        for logger in loud:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        logging.getLogger().setLevel(logging.WARNING)
    assert f"{REPOSITORY}@" in shown.getvalue()
    assert "trying again" in shown.getvalue()
    assert "canary" not in shown.getvalue()
