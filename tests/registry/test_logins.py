"""Logins in use: which login is sent, when files are read again, and the text of errors after a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import AccessDenied, ImgfsError, NotFound, RegistryFailed
from imgfs.oci.descriptor import OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference
from imgfs.registry.auth.grants import REUSE
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from tests.registry.credentials.desk import Desk, answer, entry
from tests.registry.logins import PASSWORD, hosts_toml, log_in, sent, with_desk
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene
from tests.support.token_server import basic


async def test_basic_is_sent_when_it_is_asked_for_and_from_then_on(
    mock_clock: MockClock, desk: Desk, private: Scene
) -> None:
    log_in(desk, private)
    assert await private.ask("manifest") == MANIFEST
    assert await private.ask("blob") == BLOB
    assert sent(private.fake) == ["", "Basic", "Basic"]


async def put(scene: Scene) -> None:
    """Push a manifest."""
    destination = await scene.registry.destination(scene.host, REPOSITORY)
    await destination.put_manifest("1", Descriptor(Digest.of(MANIFEST), len(MANIFEST), OCI_MANIFEST), MANIFEST)


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_refused_push_says_that_one_may_not_push(
    mock_clock: MockClock, desk: Desk, private: Scene, locked: Scene, is_known: bool
) -> None:
    for scene in (private, locked):
        log_in(desk, scene, PASSWORD if is_known else "canary-wrong")
        scene.fake.fault(faults.status(403), "PUT", times=None if is_known else 0)
        with pytest.raises(AccessDenied, match="may not push to it"):
            await put(scene)
        scene.fake.fault(faults.status(403), "GET .*/manifests/", times=None if is_known else 0)
        with pytest.raises(AccessDenied, match="may not read it"):
            await scene.ask("manifest")


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
    """Answer `status` where the registry would ask for a login, except at the root."""

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
