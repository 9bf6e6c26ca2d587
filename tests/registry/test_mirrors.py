"""Hosts that stand in for one another: who is asked when, and what happens when one is dead, wrong or cut off."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import AccessDenied, NotFound, RegistryFailed, SenderLeft, TimedOut, Unreachable, VerificationFailed
from imgfs.registry.client import Registry
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.health import DOWN_MAX, DOWN_SECONDS, SHUNNED_SECONDS
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from tests.registry.credentials.desk import Desk, entry
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene, kinds
from tests.support.programs import free_port

HOST = "registry.example"


@pytest.fixture
def first() -> Iterator[FakeRegistry]:
    """The mirror that is asked first."""
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def second() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def scene(
    mock_clock: MockClock, fake: FakeRegistry, first: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> AsyncIterator[Scene]:
    """HOST is `fake`, and both mirrors have what it has."""
    write(tmp_path, fake, tables(first, second))
    scene = Scene(mock_clock, fake, host=HOST, hosts_path=[tmp_path])
    for mirror in (first, second):
        fill(mirror)
    async with scene.registry:
        yield scene


def fill(mirror: FakeRegistry) -> None:
    mirror.add_manifest(REPOSITORY, "1", MANIFEST)
    mirror.add_blob(BLOB)


def write(directory: Path, server: FakeRegistry, text: str) -> None:
    (directory / HOST).mkdir(exist_ok=True)
    (directory / HOST / "hosts.toml").write_text(f'server = "{server.url}"\n{text}')


def tables(*mirrors: FakeRegistry, setting: str = "") -> str:
    return "".join(f'[host."{one.url}"]\n{setting}\n' for one in mirrors)


def kill(fake: FakeRegistry) -> None:
    """Refuse everything before an answer."""
    fake.fault(faults.close(), times=None)


WHATS = ["manifest", "tag", "blob"]


@pytest.mark.parametrize("what", WHATS)
async def test_the_first_mirror_is_asked_alone_and_told_whose_it_is(
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


async def test_the_registry_s_word_of_absence_is_final_whoever_is_down(
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


async def test_of_several_failures_the_registry_s_own_is_told_and_the_others_named(
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


async def test_where_nobody_may_be_asked_the_file_is_named(
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


# A blob in the middle.


async def test_a_blob_goes_on_at_the_same_byte_of_the_next_host(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000))
    second.fault(faults.cut_at(2000))
    assert await scene.read() == BLOB
    size = len(BLOB) - 1
    assert [one.range for one in (*first.log, *second.log, *scene.fake.log)] == [
        None, f"bytes=3000-{size}", f"bytes=5000-{size}",
    ]  # fmt: skip
    assert "if-range" not in second.log[0].headers
    assert scene.slept == []


@pytest.mark.parametrize(
    "action",
    [
        faults.reset_at(3000),
        lambda reply: reply.wire("Transfer-Encoding: chunked", b"bb8\r\n" + bytes(reply.body)[:3000] + b"\r\nzz\r\n"),
        lambda reply: reply.wire(f"Content-Length: {len(BLOB)}", bytes(reply.body)[:3000]),
    ],
    ids=["reset", "bad chunk", "closed"],
)
async def test_however_a_blob_breaks_off_the_next_host_goes_on_at_the_byte_that_came(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, action: Action
) -> None:
    first.fault(action)
    assert await scene.read() == BLOB
    came = scene.registry.statistics().hosts[first.host].received
    assert 0 < came <= 3000
    assert [one.range for one in second.log] == [f"bytes={came}-{len(BLOB) - 1}"]
    assert scene.fake.requests() == 0


async def test_a_mirror_that_cuts_once_is_asked_again_when_the_others_are_dead(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000))
    kill(second)
    kill(scene.fake)
    assert await scene.read() == BLOB
    assert [one.range for one in first.log] == [None, f"bytes=3000-{len(BLOB) - 1}"]


async def test_who_gave_a_part_is_asked_for_the_rest_although_the_registry_has_it_no_more(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000))
    for fake in (second, scene.fake):
        fake.fault(faults.status(404), times=None)
    assert await scene.read() == BLOB


async def test_hosts_that_all_cut_again_and_again_give_the_blob_in_the_end(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    for fake in (first, second, scene.fake):
        fake.fault(faults.cut_at(1500), times=None)
    assert await scene.read() == BLOB


async def test_hosts_that_all_give_nothing_are_given_up(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    for fake in (first, second, scene.fake):
        fake.fault(faults.cut_at(0), times=None)
    with pytest.raises(Unreachable, match=scene.fake.host):
        await scene.read()
    assert (first.requests(), second.requests(), scene.fake.requests()) == (1, 1, 3)


async def test_a_stall_goes_on_elsewhere_and_the_stalled_is_asked_last(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    stalls = Scene(scene.clock, first)
    first.fault(faults.stall(after=4000), times=None)
    async with stalls.registry, stalls.impatience(31):
        assert await scene.read() == BLOB
    assert await scene.read() == BLOB
    assert (first.requests(), second.requests()) == (1, 2)


@pytest.mark.parametrize("action", [faults.range_ignored(), faults.content_range("bytes 0-1/2"), faults.status(416)])
async def test_who_cannot_go_on_in_the_middle_is_passed_over(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, action: Action
) -> None:
    first.fault(faults.cut_at(len(BLOB) - 100))
    second.fault(action, times=None)
    assert await scene.read() == BLOB


async def test_one_who_sends_too_much_is_left_before_the_last_byte(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.longer(10), times=None)
    assert await scene.read() == BLOB
    assert second.requests() == 1


async def test_leaving_a_blob_gives_its_place_back_at_every_host(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.cut_at(3000), times=None)
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(scene.read)
    assert await scene.read() == BLOB


# Liars.


async def wrong(scene: Scene) -> VerificationFailed:
    """Read the blob and find its bytes wrong, as who hashes does; returns what is raised."""
    try:
        async with scene.registry.blob(HOST, REPOSITORY, scene.blob) as stream:
            assert b"".join([piece async for piece in stream]) != BLOB
            raise VerificationFailed("wrong")
    except VerificationFailed as error:
        return error


async def test_who_sent_wrong_bytes_is_named_and_left_for_ten_minutes_for_that_blob(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    first.fault(faults.wrong_bytes(), "/blobs/", times=None)
    with caplog.at_level(logging.WARNING, "imgfs.registry"):
        assert (await wrong(scene)).message.startswith(f"wrong; sent by {first.host}: ")
    assert [getattr(record, "host", "") for record in caplog.records] == [first.host]
    assert await scene.read() == BLOB
    assert await scene.ask("manifest") == MANIFEST
    assert (kinds(first), kinds(second)) == (["blob", "manifest"], ["blob"])
    scene.clock.jump(SHUNNED_SECONDS + 1)
    assert first.host in (await wrong(scene)).message


async def test_of_a_blob_from_several_all_are_left(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(lambda reply: faults.cut_at(3000)(faults.wrong_bytes()(reply) or reply), times=None)
    assert (await wrong(scene)).message.startswith(f"wrong; sent by {', '.join(sorted((first.host, second.host)))}: ")
    assert await scene.read() == BLOB
    assert (first.requests(), second.requests(), scene.fake.requests()) == (1, 1, 1)


async def test_blame_after_the_stream_is_left_counts_too(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    await scene.read()
    blamed = scene.registry.blame(HOST, scene.blob.digest, VerificationFailed("wrong"))
    assert isinstance(blamed, SenderLeft)
    assert blamed.message.startswith(f"wrong; sent by {first.host}: ")
    await scene.read()
    assert (first.requests(), second.requests()) == (1, 1)


async def test_a_manifest_of_wrong_bytes_is_fetched_elsewhere(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.wrong_bytes(), times=None)
    for _ in range(2):
        assert (await scene.registry.manifest(scene.by_digest))[1] == MANIFEST
    assert (first.requests(), second.requests()) == (1, 2)


async def test_each_of_several_liars_is_left_once_and_the_last_one_is_no_end(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    """Who asks again as long as he is told that it helps, asks everybody once."""
    for liar in (first, second, scene.fake):
        liar.fault(faults.wrong_bytes(), "/blobs/", times=None)
    errors = [type(await wrong(scene)) for _ in range(4)]
    assert errors == [SenderLeft, SenderLeft, VerificationFailed, VerificationFailed]
    assert (first.requests(), second.requests(), scene.fake.requests()) == (2, 1, 1)


async def test_a_liar_that_is_asked_again_because_the_others_are_dead_is_no_reason_to_ask_once_more(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.wrong_bytes(), "/blobs/", times=None)
    kill(second)
    kill(scene.fake)
    errors = [type(await wrong(scene)) for _ in range(2)]
    assert errors == [SenderLeft, VerificationFailed]


async def test_where_there_is_no_choice_nobody_is_left(mock_clock: MockClock, fake: FakeRegistry) -> None:
    scene = Scene(mock_clock, fake)
    async with scene.registry:
        await scene.read()
        blamed = scene.registry.blame(fake.host, scene.blob.digest, VerificationFailed("wrong"))
        assert not isinstance(blamed, SenderLeft)
        assert f"; sent by {fake.host}: " in blamed.message
        assert await scene.read() == BLOB


# The dead.


async def test_a_dead_mirror_is_asked_once_and_then_after_a_while_by_one(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    for _ in range(5):
        assert await scene.read() == BLOB
    assert first.requests() == 1
    scene.clock.jump(DOWN_SECONDS + 1)
    for _ in range(5):
        assert await scene.read() == BLOB
    assert first.requests() == 2
    scene.clock.jump(DOWN_SECONDS + 1)
    assert await scene.read() == BLOB
    assert first.requests() == 2, "it is left alone for longer each time"


async def test_a_mirror_that_is_back_is_asked_first_again(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry
) -> None:
    kill(first)
    await scene.read()
    first.reset()
    scene.clock.jump(DOWN_SECONDS + 1)
    for _ in range(3):
        await scene.read()
    assert first.requests() == 3


async def test_many_failures_at_once_are_one(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(scene.read)
    asked = first.requests()
    scene.clock.jump(DOWN_SECONDS + 1)
    await scene.read()
    assert first.requests() == asked + 1


async def test_the_dead_are_asked_when_the_living_fail(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    kill(first)
    await scene.read()
    first.reset()
    for fake in (second, scene.fake):
        fake.fault(faults.status(500), times=None)
    assert await scene.read() == BLOB
    assert first.requests() == 1


async def test_a_mirror_that_asks_for_rest_gets_it(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.status(429, Retry_After="50"))
    await scene.read()
    scene.clock.jump(49)
    await scene.read()
    assert (first.requests(), second.requests()) == (1, 2)
    scene.clock.jump(2)
    await scene.read()
    assert first.requests() == 2


async def test_nobody_listens_and_everything_is_told_soon(mock_clock: MockClock, tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    (tmp_path / HOST).mkdir()
    hosts = "".join(f'[host."http://127.0.0.1:{port}"]\n' for port in ports[1:])
    (tmp_path / HOST / "hosts.toml").write_text(f'server = "http://127.0.0.1:{ports[0]}"\n{hosts}')
    async with Registry(hosts_path=[tmp_path], sleep=_no_sleep) as registry:
        with FakeRegistry() as anybody:
            reference = Scene(mock_clock, anybody, host=HOST).reference
        with pytest.raises(Unreachable) as caught:
            await registry.manifest(reference)
    assert [f"127.0.0.1:{port}" in caught.value.message for port in ports] == [True] * 3


async def test_silent_hosts_are_given_up_within_two_minutes(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    fakes = (first, second, scene.fake)
    for fake in fakes:
        fake.fault(faults.stall(), times=None)
    before = mock_clock.current_time()
    async with trio.open_nursery() as nursery:
        for fake in fakes:
            nursery.start_soon(_pass_time_at, Scene(mock_clock, fake))
        with pytest.raises(TimedOut):
            await scene.ask("manifest")
        nursery.cancel_scope.cancel()
    assert mock_clock.current_time() - before <= 120


async def _pass_time_at(scene: Scene) -> None:
    async with scene.registry, scene.impatience(31):
        await trio.sleep_forever()


async def test_the_counters_tell_each_host_apart(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.status(429, Retry_After="5"))
    await scene.read()
    hosts = scene.registry.statistics().hosts
    assert (hosts[first.host].requests, hosts[first.host].failures) == ({"blob": 1}, {"RateLimited": 1})
    assert (hosts[first.host].pauses, hosts[first.host].retries) == (1, 0)
    assert (hosts[second.host].received, hosts[second.host].failures) == (len(BLOB), {})
    assert hosts[second.host].sources == {"mirror": len(BLOB)}


async def _no_sleep(seconds: float) -> None:
    await trio.lowlevel.checkpoint()
