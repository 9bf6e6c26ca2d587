"""Logins at work: what is shown to whom, when files are looked at again, and what a refusal says."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import AccessDenied, ImgfsError, Malformed, NotFound, RegistryFailed
from imgfs.log import JsonLines
from imgfs.oci.reference import Reference
from imgfs.registry.auth import REUSE
from imgfs.registry.credentials.store import Credentials
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from tests.registry.credentials.desk import Desk, answer, entry
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene
from tests.support.token_server import TokenServer, basic, token_server

PASSWORD = "canary-password"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
async def private(mock_clock: MockClock, desk: Desk, fake: FakeRegistry) -> AsyncIterator[Scene]:
    """A registry that wants Basic, and an empty desk."""
    fake.logins["user"] = PASSWORD
    async with with_desk(mock_clock, fake, desk) as scene:
        yield scene


@asynccontextmanager
async def with_desk(
    clock: MockClock, fake: FakeRegistry, desk: Desk, hosts_path: Sequence[Path] = ()
) -> AsyncIterator[Scene]:
    scene = Scene(clock, fake, credentials=Credentials(None, desk.identity), hosts_path=hosts_path)
    async with scene.registry:
        yield scene


@pytest.fixture
def tokens(guarded: FakeRegistry) -> Iterator[TokenServer]:
    """The endpoint that the guarded registry sends clients to."""

    def issue(scope: str, user: str) -> str:
        token = f"canary-token-{len(guarded.tokens)}"
        guarded.tokens[f"Bearer {token}"] = scope if user else "nothing"
        return token

    with token_server(issue) as server:
        server.logins["user"] = PASSWORD
        server.identities["canary-identity"] = "user"
        guarded.realm = server.url
        yield server


@pytest.fixture
async def locked(mock_clock: MockClock, desk: Desk, guarded: FakeRegistry, tokens: TokenServer) -> AsyncIterator[Scene]:
    """A registry that wants bearer tokens, which are given to logins only."""
    async with with_desk(mock_clock, guarded, desk) as scene:
        yield scene


def log_in(desk: Desk, scene: Scene, password: str = PASSWORD, user: str = "user") -> None:
    desk.login(desk.auth, user, password, scene.host)


def sent(fake: FakeRegistry) -> list[str]:
    """What each request was authorized with: the scheme, or ""."""
    return [request.headers.get("authorization", "").partition(" ")[0] for request in fake.log]


async def test_basic_is_sent_when_it_is_asked_for_and_from_then_on(
    mock_clock: MockClock, desk: Desk, private: Scene
) -> None:
    log_in(desk, private)
    assert await private.ask("manifest") == MANIFEST
    assert await private.ask("blob") == BLOB
    assert sent(private.fake) == ["", "Basic", "Basic"]


async def test_an_open_registry_is_not_shown_the_login(mock_clock: MockClock, desk: Desk, scene: Scene) -> None:
    async with with_desk(mock_clock, scene.fake, desk) as own:
        log_in(desk, own)
        await own.ask("manifest")
    assert sent(scene.fake) == [""]


async def test_without_a_login_the_refusal_says_where_none_was_found(
    mock_clock: MockClock, desk: Desk, private: Scene
) -> None:
    desk.login(desk.docker, "other", host="other.example")
    with pytest.raises(AccessDenied) as caught:
        await private.ask("manifest")
    assert f"none is in {desk.docker}" in caught.value.message
    assert f"`skopeo login {private.host}`" in caught.value.message


async def test_a_login_made_after_a_refusal_is_used_at_once(mock_clock: MockClock, desk: Desk, private: Scene) -> None:
    with pytest.raises(AccessDenied, match="there is no auth file"):
        await private.ask("manifest")
    log_in(desk, private)
    assert await private.ask("manifest") == MANIFEST


async def test_a_changed_password_is_read_on_the_first_refusal(
    mock_clock: MockClock, desk: Desk, private: Scene
) -> None:
    log_in(desk, private)
    await private.ask("manifest")
    private.fake.logins["user"] = "canary-new"
    log_in(desk, private, "canary-new")
    assert await private.ask("blob") == BLOB
    assert sent(private.fake) == ["", "Basic", "Basic", "Basic"]


async def test_a_refused_login_is_not_shown_again_in_vain(mock_clock: MockClock, desk: Desk, private: Scene) -> None:
    log_in(desk, private, "canary-wrong")
    with pytest.raises(AccessDenied) as caught:
        await private.ask("manifest")
    assert sent(private.fake) == ["", "Basic"]
    assert f"answered 401 UNAUTHORIZED to the login from {desk.auth}" in caught.value.message
    with pytest.raises(AccessDenied):
        await private.ask("manifest")
    assert sent(private.fake)[2:] == ["Basic"]


async def test_a_logout_is_noticed_in_the_end(mock_clock: MockClock, desk: Desk, private: Scene) -> None:
    log_in(desk, private)
    await private.ask("manifest")
    desk.auth.unlink()
    await private.ask("manifest")
    private.clock.jump(REUSE + 1)
    with pytest.raises(AccessDenied, match="there is no auth file"):
        await private.ask("manifest")


async def test_a_403_is_final_unless_the_login_changed(mock_clock: MockClock, desk: Desk, private: Scene) -> None:
    private.fake.logins |= {"guest": "g"}
    log_in(desk, private, "g", "guest")
    await private.ask("manifest")
    private.fake.fault(faults.status(403), "/blobs/", times=None)
    with pytest.raises(AccessDenied, match=f"answered 403 to the login from {desk.auth}"):
        await private.ask("blob")
    assert sent(private.fake) == ["", "Basic", "Basic"]
    private.fake.reset()
    private.fake.fault(faults.status(403), "/blobs/")
    log_in(desk, private)
    assert await private.ask("blob") == BLOB
    assert sent(private.fake) == ["Basic", "", "Basic"]
    assert private.fake.log[-1].headers["authorization"] == basic("user", PASSWORD)


def hide(fake: FakeRegistry, status: int) -> None:
    """Answer `status` to whoever is not logged in, where a registry usually asks for a login; but not at the root."""

    def hiding(reply: Reply) -> Reply:
        return Reply(status) if reply.status == 401 else reply

    fake.fault(hiding, "/(manifests|blobs)/", times=None)


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("asked", ["manifest", "blob", "tag"])
async def test_a_registry_that_hides_instead_of_asking_is_asked_at_its_root(
    mock_clock: MockClock, desk: Desk, private: Scene, status: int, asked: str
) -> None:
    hide(private.fake, status)
    with pytest.raises(AccessDenied if status == 403 else NotFound) as caught:
        await private.ask(asked)
    assert ("there is no auth file" in caught.value.message) == (status == 403)
    assert sent(private.fake) == [""]
    private.fake.log.clear()
    log_in(desk, private)
    assert await private.ask(asked) == private.expected(asked)
    assert [request.path for request in private.fake.log][1] == "/v2/"
    assert sent(private.fake) == ["", "", "Basic"]


@pytest.mark.parametrize(
    "action",
    [
        faults.close(),
        faults.reset(),
        faults.garbage(),
        faults.status(500),
        faults.status(429, Retry_After="3600"),
        faults.redirect("ftp://127.0.0.1/"),
        faults.redirect("?"),
        faults.endless_headers(),
        faults.status(401, WWW_Authenticate='Bearer realm="file:///etc/shadow"'),
    ],
    ids=["closed", "reset", "garbage", "500", "429", "to ftp", "in a circle", "headers", "hostile realm"],
)
async def test_a_root_that_fails_leaves_the_refusal_as_it_was_and_is_asked_again(
    mock_clock: MockClock, desk: Desk, private: Scene, action: Action
) -> None:
    hide(private.fake, 403)
    log_in(desk, private)
    fault = private.fake.fault(action, "GET /v2/$", times=None)
    before = trio.current_time()
    with pytest.raises(ImgfsError) as caught:
        await private.ask("manifest")
    assert isinstance(caught.value, AccessDenied | RegistryFailed)
    assert "canary" not in caught.value.message
    assert private.fake.requests() <= 4
    assert trio.current_time() - before < 120
    fault.times = 0
    private.clock.jump(REUSE + 1)
    assert await private.ask("manifest") == MANIFEST


async def test_what_is_absent_for_the_login_too_is_absent(mock_clock: MockClock, desk: Desk, private: Scene) -> None:
    hide(private.fake, 404)
    log_in(desk, private)
    for _ in range(2):
        with pytest.raises(NotFound):
            await private.registry.manifest(Reference(private.host, "team/app", "gone"))
    assert sent(private.fake) == ["", "", "Basic", "Basic"]


async def test_a_refusal_by_a_registry_that_wants_no_login_says_so(
    mock_clock: MockClock, desk: Desk, scene: Scene
) -> None:
    scene.fake.fault(faults.status(403), "/manifests/", times=None)
    async with with_desk(mock_clock, scene.fake, desk) as own:
        log_in(desk, own)
        with pytest.raises(AccessDenied, match=f"does not ask for the login from {desk.auth}"):
            await own.ask("manifest")
    assert set(sent(scene.fake)) == {""}


async def test_an_open_registry_is_asked_at_its_root_once(mock_clock: MockClock, desk: Desk, scene: Scene) -> None:
    async with with_desk(mock_clock, scene.fake, desk) as own:
        log_in(desk, own)
        for tag in ("gone", "lost"):
            with pytest.raises(NotFound):
                await own.registry.manifest(Reference(own.host, "team/app", tag))
    assert [request.path.rpartition("/")[2] for request in scene.fake.log] == ["gone", "", "lost"]
    assert set(sent(scene.fake)) == {""}


async def test_the_longest_prefix_is_shown_for_its_repositories_only(
    mock_clock: MockClock, desk: Desk, private: Scene
) -> None:
    private.fake.logins |= {"team": "t"}
    private.fake.add_manifest("other/app", "1", MANIFEST)
    desk.write(desk.auth, auths={private.host: entry("user", PASSWORD), f"{private.host}/team": entry("team", "t")})
    await private.ask("manifest")
    await private.registry.manifest(Reference(private.host, "other/app", "1"))
    shown = [request.headers.get("authorization", "") for request in private.fake.log]
    assert shown == ["", basic("team", "t"), "", basic("user", PASSWORD)]


async def test_a_login_for_one_host_is_shown_to_no_other(mock_clock: MockClock, desk: Desk, private: Scene) -> None:
    desk.login(desk.auth, "user", PASSWORD, "127.0.0.1")
    with pytest.raises(AccessDenied, match="none is in"):
        await private.ask("manifest")
    assert sent(private.fake) == [""]


async def test_a_login_is_not_shown_to_where_a_registry_redirects(
    mock_clock: MockClock, desk: Desk, private: Scene, storage: FakeRegistry
) -> None:
    log_in(desk, private)
    await private.ask("manifest")
    storage.logins["user"] = PASSWORD
    private.fake.fault(faults.redirect(f"{storage.url}/v2/b/blobs/{private.blob.digest}"), "/blobs/", times=None)
    with pytest.raises(AccessDenied, match=storage.host):
        await private.ask("blob")
    assert set(sent(storage)) == {""}


async def test_a_program_is_asked_afresh_when_its_login_is_refused(
    mock_clock: MockClock, desk: Desk, private: Scene
) -> None:
    desk.program("store", answer("user", "canary-old"))
    desk.write(desk.docker, credsStore="store")
    with pytest.raises(AccessDenied, match="docker-credential-store"):
        await private.ask("manifest")
    desk.program("store", answer("user", PASSWORD))
    assert await private.ask("manifest") == MANIFEST
    assert await private.ask("blob") == BLOB


async def test_a_program_that_fails_is_told_with_the_refusal(mock_clock: MockClock, desk: Desk, private: Scene) -> None:
    desk.write(desk.docker, credHelpers={private.host: "gone"})
    with pytest.raises(AccessDenied, match="docker-credential-gone, which it names, is not in PATH"):
        await private.ask("manifest")


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
async def test_a_challenge_that_the_login_does_not_answer_is_told(
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


async def test_an_identity_token_that_nobody_takes_is_told(
    mock_clock: MockClock, desk: Desk, locked: Scene, tokens: TokenServer
) -> None:
    tokens.has_oauth2 = False
    desk.write(desk.auth, auths={locked.host: {"identitytoken": "canary-identity"}})
    with pytest.raises(AccessDenied, match="takes no identity tokens") as caught:
        await locked.ask("manifest")
    assert "canary" not in caught.value.message


async def test_a_login_that_the_endpoint_refuses_is_told(
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


def hosts_toml(directory: Path, fake: FakeRegistry, text: str) -> list[Path]:
    """A hosts_path with this hosts.toml for the registry."""
    path = directory / "certs.d" / fake.host / "hosts.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return [directory / "certs.d"]


@pytest.mark.parametrize("mirror_login", [True, False])
async def test_a_mirror_is_shown_its_own_login_and_no_other(
    mock_clock: MockClock, desk: Desk, fake: FakeRegistry, storage: FakeRegistry, tmp_path: Path, mirror_login: bool
) -> None:
    fake.logins["user"], storage.logins["user"] = PASSWORD, "canary-mirror"
    hosts = hosts_toml(tmp_path, fake, f'[host."{storage.url}"]\ncapabilities = ["pull", "resolve"]\n')
    async with with_desk(mock_clock, fake, desk, hosts) as scene:
        storage.add_manifest(REPOSITORY, "1", MANIFEST)
        storage.add_blob(BLOB)
        auths = {scene.host: entry("user", PASSWORD)}
        desk.write(desk.auth, auths=auths | ({storage.host: entry("user", "canary-mirror")} if mirror_login else {}))
        assert await scene.ask("manifest") == MANIFEST
        assert await scene.ask("blob") == BLOB
    mirrored = [request.headers.get("authorization", "") for request in storage.log]
    assert set(mirrored) == ({"", basic("user", "canary-mirror")} if mirror_login else {""})
    assert set(sent(fake)) == (set() if mirror_login else {"", "Basic"})


async def test_an_answer_to_configured_headers_is_not_repeated(
    mock_clock: MockClock, desk: Desk, fake: FakeRegistry, tmp_path: Path
) -> None:
    text = f'server = "{fake.url}"\n[host."{fake.url}".header]\nx-key = "canary-key"\n'
    page = faults.status(200, b"<html>canary-key", Content_Type="text/html; canary-key")
    fake.fault(page, "/manifests/", times=None)
    async with with_desk(mock_clock, fake, desk, hosts_toml(tmp_path, fake, text)) as scene:
        with loud() as shown, pytest.raises(Malformed) as caught:
            await scene.ask("manifest")
    assert fake.log[0].headers["x-key"] == "canary-key"
    assert "canary" not in f"{shown.getvalue()}{caught.value}"


Break = Callable[[Scene, FakeRegistry], None]
"""Something that goes wrong for a request that showed a login."""


def echo(scene: Scene, storage: FakeRegistry) -> None:
    """A login page that repeats what it was shown, in its body and its type."""
    shown = basic("user", PASSWORD)
    page = faults.status(200, f"<html>{shown} {PASSWORD}".encode(), Content_Type=f"text/html; {shown}")
    scene.fake.fault(page, "/manifests/", times=None)


BREAKS: list[Break] = [
    echo,
    lambda scene, storage: scene.fake.logins.update(user="other"),
    lambda scene, storage: scene.fake.fault(faults.status(403), times=None) and None,
    lambda scene, storage: scene.fake.fault(faults.status(500), times=None) and None,
    lambda scene, storage: scene.fake.fault(faults.close(), times=None) and None,
    lambda scene, storage: scene.fake.fault(faults.redirect("http://10.0.0.1/"), times=None) and None,
    lambda scene, storage: scene.fake.fault(faults.redirect(f"{storage.url}/x?{PASSWORD}"), times=None) and None,
]


@pytest.mark.parametrize("breaking", BREAKS)
async def test_a_login_is_never_shown(
    mock_clock: MockClock, desk: Desk, private: Scene, storage: FakeRegistry, breaking: Break
) -> None:
    log_in(desk, private)
    with loud() as shown:
        await private.ask("blob")
        breaking(private, storage)
        with pytest.raises(ImgfsError) as caught:
            await private.ask("manifest")
        shown.write("".join(traceback.format_exception(caught.value)))
    assert "request" in shown.getvalue()
    for secret in (PASSWORD, basic("user", PASSWORD).removeprefix("Basic ")):
        assert secret not in shown.getvalue()


@pytest.mark.parametrize("body", [b"canary-secret", b'["canary-secret"]', b'{"token":"canary secret"}'])
async def test_what_a_token_endpoint_answers_is_not_repeated(
    mock_clock: MockClock, desk: Desk, guarded: FakeRegistry, body: bytes
) -> None:
    guarded.fault(faults.status(200, body), "/token", times=None)
    async with with_desk(mock_clock, guarded, desk) as scene:
        log_in(desk, scene)
        with loud() as shown, pytest.raises(Malformed) as caught:
            await scene.ask("manifest")
    assert "canary" not in f"{shown.getvalue()}{caught.value}"


@contextmanager
def loud() -> Iterator[io.StringIO]:
    """Everything that is logged inside, at the lowest level, by anybody."""
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    handler.setFormatter(JsonLines())
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("", "imgfs", "trio", "h11")}
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield shown
    finally:
        for logger, level in loggers.items():
            logger.removeHandler(handler)
            logger.setLevel(level)
