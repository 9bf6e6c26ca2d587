"""Mirrors: the order in which hosts are asked, and the logins that each host receives."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.errors import AccessDenied, NotFound, RegistryFailed, Unreachable
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.hosts.health import DOWN_MAX
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from tests.registry.credentials.desk import Desk, entry
from tests.registry.mirrors.hosts import HOST, fill, kill, tables, write
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene, kinds

WHATS = ["manifest", "tag", "blob"]


@pytest.mark.parametrize("what", WHATS)
async def test_only_the_first_mirror_is_asked_and_gets_the_ns_parameter(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, what: str
) -> None:
    assert await scene.ask(what) == scene.expected(what)
    assert [one.path.partition("?")[2] for one in first.log] == [f"ns={HOST}"]
    assert (second.requests(), scene.fake.requests()) == (0, 0)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize(
    "action",
    [
        faults.status(404),
        faults.status(401),
        faults.status(403),
        faults.status(400),
        faults.status(429),
        faults.status(429, Retry_After="5"),
        faults.status(500),
        faults.status(503, Retry_After="600"),
        faults.close(),
        faults.redirect("http://169.254.169.254/"),
        faults.redirect("gopher://x/"),
    ],
)
async def test_whatever_a_mirror_answers_the_next_is_asked_without_a_wait(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, what: str, action: Action
) -> None:
    first.fault(action, times=None)
    assert await scene.ask(what) == scene.expected(what)
    assert (first.requests(), second.requests(), scene.fake.requests()) == (1, 1, 0)
    assert scene.slept == []


@pytest.mark.parametrize("what", ["manifest", "blob"])
@pytest.mark.parametrize("action", [faults.html(), faults.wrong_length(100), faults.cut_at(0), faults.cut_at(5)])
async def test_a_body_of_no_use_is_asked_for_elsewhere(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, what: str, action: Action
) -> None:
    first.fault(action, times=None)
    assert await scene.ask(what) == scene.expected(what)
    assert scene.fake.requests() == 0


@pytest.mark.parametrize("what", WHATS)
async def test_the_registry_itself_is_asked_last(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, what: str
) -> None:
    kill(first)
    second.fault(faults.status(404), times=None)
    assert await scene.ask(what) == scene.expected(what)
    assert [fake.requests() for fake in (first, second, scene.fake)] == [1, 1, 1]


@pytest.mark.parametrize("what", WHATS)
async def test_only_the_registry_itself_says_that_something_is_absent(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, what: str
) -> None:
    for mirror in (first, second):
        mirror.fault(faults.status(404), times=None)
    kill(scene.fake)
    with pytest.raises(Unreachable, match=f"{first.host} has it not, {second.host} has it not"):
        await scene.ask(what)
    scene.fake.reset()
    scene.fake.fault(faults.status(404), times=None)
    scene.clock.jump(2 * DOWN_MAX)
    with pytest.raises(NotFound):
        await scene.ask(what)


async def test_a_404_of_the_registry_itself_is_final_even_if_mirrors_are_down(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    kill(second)
    await scene.ask("manifest")
    asked = first.requests(), second.requests()
    scene.fake.fault(faults.status(404), times=None)
    with pytest.raises(NotFound):
        await scene.ask("manifest")
    assert (first.requests(), second.requests()) == asked


async def test_the_last_one_gets_the_usual_tries(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    for mirror in (first, second):
        mirror.fault(faults.status(404), times=None)
    scene.fake.fault(faults.status(500), times=2)
    assert await scene.read() == BLOB
    assert len(scene.slept) == 2


async def test_a_manifest_over_the_limit_is_asked_for_elsewhere(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.huge(5 << 20, announced=False), times=None)
    assert await scene.ask("manifest") == MANIFEST


async def test_of_several_failures_the_registrys_own_is_raised_and_names_the_others(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    second.fault(faults.status(500), times=None)
    scene.fake.fault(faults.status(403), times=None)
    with pytest.raises(AccessDenied) as caught:
        await scene.ask("manifest")
    assert scene.fake.host in caught.value.message
    assert f"{first.host} is not reached, {second.host} failed" in caught.value.message


async def test_a_host_without_the_capability_is_passed_over(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    write(tmp_path, scene.fake, tables(first, setting='capabilities = ["pull"]') + tables(second))
    await scene.ask("tag")
    await scene.ask("manifest")
    assert (kinds(first), kinds(second)) == ([], ["tag", "manifest"])
    await scene.registry.manifest(scene.by_digest)
    await scene.read()
    assert kinds(first) == ["manifest", "blob"]


async def test_a_host_that_only_resolves_says_the_digest_and_others_give_the_bytes(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    only = tables(first, setting='capabilities = ["resolve"]')
    write(tmp_path, scene.fake, only + tables(second, setting='capabilities = ["pull"]'))
    assert await scene.ask("manifest") == MANIFEST
    assert (kinds(first), kinds(second)) == (["tag"], ["manifest"])
    assert second.log[0].path.partition("?")[0].endswith(scene.digest)


async def test_if_no_host_has_the_capability_the_error_names_the_file(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, tmp_path: Path
) -> None:
    write(tmp_path, scene.fake, 'capabilities = ["push"]')
    with pytest.raises(RegistryFailed, match=r"no host of registry\.example has the capability resolve"):
        await scene.ask("manifest")
    assert scene.fake.requests() == 0


async def test_a_wrong_file_keeps_requests_at_home(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, tmp_path: Path
) -> None:
    write(tmp_path, scene.fake, "skip_verify = 1")
    with pytest.raises(RegistryFailed, match=r"hosts\.toml: skip_verify"):
        await scene.ask("manifest")
    write(tmp_path, scene.fake, tables(first))
    assert await scene.ask("manifest") == MANIFEST
    assert scene.fake.requests() == 0


async def test_headers_go_to_their_host_and_no_further(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    write(tmp_path, scene.fake, tables(first, setting='header = {X-Canary = "canary"}'))
    first.fault(faults.redirect(f"{second.url}/v2/x/blobs/{scene.blob.digest}"), "/blobs/")
    assert await scene.read() == BLOB
    await scene.ask("manifest")
    assert [one.headers.get("x-canary") for one in first.log] == ["canary", "canary"]
    assert "x-canary" not in second.log[0].headers
    first.fault(faults.status(404), times=None)
    await scene.ask("manifest")
    assert "x-canary" not in scene.fake.log[0].headers


async def test_a_token_of_a_mirror_is_the_mirrors(
    mock_clock: MockClock, guarded: FakeRegistry, fake: FakeRegistry, tmp_path: Path
) -> None:
    write(tmp_path, fake, tables(guarded))
    scene = Scene(mock_clock, fake, host=HOST, hosts_path=[tmp_path])
    fill(guarded)
    async with scene.registry:
        assert await scene.read() == BLOB
        guarded.fault(faults.status(404), "/blobs/", times=None)
        assert await scene.read() == BLOB
    assert kinds(guarded)[:3] == ["blob", "token", "blob"]
    assert "authorization" not in fake.log[0].headers


async def test_a_login_is_for_the_host_it_names_mirror_or_not(
    mock_clock: MockClock, fake: FakeRegistry, first: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    desk = Desk(tmp_path)
    names = {HOST: "name", first.host: "first", fake.host: "server"}
    desk.write(desk.auth, auths={host: entry(user, "canary") for host, user in names.items()})
    write(tmp_path, fake, tables(first, second))
    scene = Scene(mock_clock, fake, host=HOST, hosts_path=[tmp_path], credentials=Credentials(None, desk.identity))
    for mirror in (first, second):
        fill(mirror)
        mirror.logins["nobody"] = "nothing"
    fake.logins["server"] = "canary"
    async with scene.registry:
        assert await scene.read() == BLOB
    shown = [[one.headers.get("authorization") for one in one_of.log] for one_of in (first, second, fake)]
    assert shown == [[None, basic("first")], [None], [None, basic("server")]]


def basic(user: str) -> str:
    return f"Basic {entry(user, 'canary')['auth']}"


async def test_a_mirror_with_a_path_of_its_own_is_asked_for_a_login_below_it(
    mock_clock: MockClock, fake: FakeRegistry, first: FakeRegistry, tmp_path: Path
) -> None:
    desk = Desk(tmp_path)
    desk.login(desk.auth, "me", host=first.host)
    (tmp_path / HOST).mkdir()
    text = f'server = "{fake.url}"\n[host."{first.url}/cache"]\noverride_path = true\n'
    (tmp_path / HOST / "hosts.toml").write_text(text)
    scene = Scene(mock_clock, fake, host=HOST, hosts_path=[tmp_path], credentials=Credentials(None, desk.identity))
    async with scene.registry:
        assert await scene.read() == BLOB
    assert [one.path.partition("?")[0] for one in first.log] == [
        f"/cache/{REPOSITORY}/blobs/{scene.blob.digest}",
        "/cache/",
    ]
