"""Logins at token endpoints: which login is exchanged for a token, how, and the text of errors after a refusal."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import AccessDenied, RegistryFailed
from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.credentials.desk import Desk, entry
from tests.registry.logins import PASSWORD, log_in, sent, with_desk
from tests.registry.scene import BLOB, MANIFEST, Scene
from tests.support.token_server import TokenServer, basic


async def test_a_registry_token_needs_no_endpoint(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    locked.fake.tokens["Bearer canary-registry"] = "repository:team/app:pull"
    desk.write(desk.auth, auths={locked.host: {"registrytoken": "canary-registry"}})
    assert await locked.ask("manifest") == MANIFEST
    assert tokens.shown == []


async def test_a_token_endpoint_is_shown_basic_and_the_registry_the_token(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    log_in(desk, locked)
    assert await locked.ask("manifest") == MANIFEST
    assert await locked.ask("blob") == BLOB
    assert sent(locked.fake) == ["", "Bearer", "Bearer"]
    assert [(one.method, one.authorization, one.scope) for one in tokens.shown] == [
        ("GET", basic("user", PASSWORD), "repository:team/app:pull")
    ]


async def test_an_identity_token_is_exchanged_in_a_form_and_again_when_the_token_expires(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    desk.write(desk.auth, auths={locked.host: entry("user", "") | {"identitytoken": "canary-identity"}})
    assert await locked.ask("manifest") == MANIFEST
    locked.clock.jump(301)
    assert await locked.ask("blob") == BLOB
    first, second = tokens.shown
    assert (first.method, first.path, first.authorization) == ("POST", "/auth", "")
    assert first.form == {
        "grant_type": "refresh_token",
        "service": "fake",
        "client_id": "imgfs",
        "scope": "repository:team/app:pull",
        "refresh_token": "canary-identity",
    }
    assert second == first


async def test_an_identity_token_gives_way_to_its_successor_and_comes_back_when_that_is_refused(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    desk.write(desk.auth, auths={locked.host: {"identitytoken": "canary-identity"}})
    tokens.successor = "canary-successor"
    tokens.identities["canary-successor"] = "user"
    for _ in range(2):
        await locked.ask("manifest")
        locked.clock.jump(301)
    del tokens.identities["canary-successor"]
    assert await locked.ask("manifest") == MANIFEST
    shown = [one.form["refresh_token"].removeprefix("canary-") for one in tokens.shown]
    assert shown == ["identity", "successor", "successor", "identity"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "without saying how to log in"),
        ("Negotiate", r"wants negotiate, for which the login from .* is not enough"),
        ('Basic realm="x"', r"wants basic, for which the login from .* is not enough"),
    ],
)
async def test_a_challenge_that_the_login_cannot_answer_is_reported(
    mock_clock: MockClock, desk: Desk, scene: Scene, header: str, said: str
) -> None:
    scene.fake.fault(faults.status(401, **({"WWW_Authenticate": header} if header else {})), times=None)
    async with with_desk(mock_clock, scene.fake, desk) as own:
        desk.write(desk.auth, auths={own.host: {"identitytoken": "canary-identity"}})
        with pytest.raises(AccessDenied, match=said):
            await own.ask("manifest")
    assert sent(scene.fake) == [""]


async def test_an_endpoint_without_oauth2_is_shown_the_password(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    tokens.has_oauth2 = False
    both = entry("user", PASSWORD) | {"identitytoken": "canary-identity"}
    desk.write(desk.auth, auths={locked.host: both})
    assert await locked.ask("manifest") == MANIFEST
    assert [one.method for one in tokens.shown] == ["POST", "GET"]


async def test_a_refused_identity_token_is_reported(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    tokens.has_oauth2 = False
    desk.write(desk.auth, auths={locked.host: {"identitytoken": "canary-identity"}})
    with pytest.raises(AccessDenied, match="takes no identity tokens") as caught:
        await locked.ask("manifest")
    assert "canary" not in caught.value.message


async def test_a_login_that_the_endpoint_refuses_is_reported(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    log_in(desk, locked, "canary-wrong")
    with pytest.raises(AccessDenied) as caught:
        await locked.ask("manifest")
    assert f"token endpoint 127.0.0.1:{tokens.server_port} answered 401" in caught.value.message
    assert f"to the login from {desk.auth}" in caught.value.message
    assert len(tokens.shown) == 1


async def test_a_token_without_rights_gives_way_to_a_later_login(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    tokens.takes_anybody = True
    with pytest.raises(AccessDenied, match="to an anonymous request"):
        await locked.ask("manifest")
    log_in(desk, locked)
    assert await locked.ask("manifest") == MANIFEST
    assert [bool(one.authorization) for one in tokens.shown] == [False, True]


async def test_many_at_once_ask_for_one_token(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    log_in(desk, locked)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(locked.ask, "manifest")
    assert len(tokens.shown) == 1


@pytest.mark.parametrize("member", ["auth", "identitytoken"])
async def test_a_token_endpoint_that_redirects_takes_no_login_along(
    mock_clock: MockClock, desk: Desk, guarded: FakeRegistry, storage: FakeRegistry, member: str
) -> None:
    login = entry("user", PASSWORD) if member == "auth" else {"identitytoken": "canary-identity"}
    guarded.fault(faults.redirect(f"{storage.url}/token"), "/token", times=None)
    async with with_desk(mock_clock, guarded, desk) as scene:
        desk.write(desk.auth, auths={scene.host: login})
        storage.fault(faults.status(401, WWW_Authenticate='Basic realm="x"'), times=None)
        with pytest.raises((AccessDenied, RegistryFailed)) as caught:
            await scene.ask("manifest")
    assert guarded.requests("token") >= 1
    assert set(sent(storage)) <= {""}
    assert all(request.body == b"" for request in storage.log)
    assert "canary" not in caught.value.message
