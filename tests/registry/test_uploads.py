"""Blobs on their way to a registry: whole and in parts, cut off and gone on with, and registries of every manner."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock

from imgfs.errors import (
    AccessDenied,
    ImgfsError,
    NotFound,
    RateLimited,
    RegistryFailed,
    StorageFailed,
    TimedOut,
    Unreachable,
    VerificationFailed,
)
from imgfs.registry.client import Registry
from imgfs.registry.limits import Limits
from imgfs.registry.outgoing import Outgoing
from imgfs.testing.faults import close, redirect, status
from imgfs.testing.reply import Reply
from imgfs.testing.uploads import PushRegistry
from tests.registry.pushing import CHUNK, LARGE, REPOSITORY, SMALL, Bytes, Pushing, Slow, Stopping


@pytest.fixture
def fake() -> Iterator[PushRegistry]:
    with PushRegistry() as fake:
        yield fake


@pytest.fixture
def other() -> Iterator[PushRegistry]:
    """Another origin, where uploads of `fake` may go."""
    with PushRegistry() as other:
        yield other


@pytest.fixture
async def pushing(mock_clock: MockClock, fake: PushRegistry) -> AsyncIterator[Pushing]:
    pushing = Pushing(mock_clock, fake)
    async with pushing.registry:
        yield pushing


def parts(fake: PushRegistry) -> list[tuple[str, str | None, int]]:
    """Method, Content-Range and bytes of each request that sends some."""
    return [
        (one.method, one.headers.get("content-range"), len(one.body))
        for one in fake.log
        if one.method in ("PATCH", "PUT")
    ]


async def test_a_small_blob_takes_two_requests(mock_clock: MockClock, pushing: Pushing) -> None:
    blob = Bytes(SMALL)
    await pushing.upload(blob)
    assert pushing.fake.asked() == ["POST upload", "PUT upload"]
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == SMALL
    assert pushing.fake.log[1].headers["content-type"] == "application/octet-stream"
    assert pushing.offsets == [0, len(SMALL)]


async def test_an_empty_blob_is_sent(mock_clock: MockClock, pushing: Pushing) -> None:
    blob = Bytes(b"")
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == b""


async def test_a_large_blob_goes_in_parts_and_the_last_request_sends_nothing(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    ends = [*range(CHUNK, len(LARGE), CHUNK), len(LARGE)]
    assert parts(pushing.fake) == [
        *(("PATCH", f"{start}-{end - 1}", end - start) for start, end in zip([0, *ends], ends, strict=False)),
        ("PUT", None, 0),
    ]
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert pushing.offsets == [0, *ends, len(LARGE)]
    assert pushing.fake.sent() == len(LARGE)
    assert pushing.registry.statistics().hosts[pushing.fake.host].sent == len(LARGE)


async def test_a_registry_that_wants_larger_parts_gets_them(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.least_part = 3 * CHUNK
    await pushing.upload(Bytes(LARGE))
    assert [size for method, _, size in parts(pushing.fake) if method == "PATCH"] == [3 * CHUNK, len(LARGE) - 3 * CHUNK]


@pytest.mark.parametrize("at", [2, 1000, CHUNK - 1])
async def test_a_part_that_breaks_goes_on_where_the_registry_has_it(
    mock_clock: MockClock, pushing: Pushing, at: int
) -> None:
    pushing.fake.cuts = [at]
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert pushing.fake.asked("upload")[:3] == ["POST upload", "PATCH upload", "GET upload"]
    assert pushing.fake.sent() == len(LARGE)
    assert blob.spans[1][0] == at
    assert len(pushing.slept) == 1


async def test_a_whole_blob_that_breaks_goes_on_too(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.cuts = [777]
    blob = Bytes(SMALL)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == SMALL
    assert pushing.fake.sent() == len(SMALL)


async def test_every_part_may_break_as_long_as_something_arrives(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.cuts = [1500] * 9
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


async def test_each_try_that_fails_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.cuts, told = [1500, 1500], list[ImgfsError]()
    destination, blob = await pushing.destination(), Bytes(LARGE)
    await destination.upload(blob.descriptor, blob.read, pushing.offsets.append, told.append)
    assert [type(one) for one in told] == [Unreachable] * 2


async def test_crumbs_are_no_progress(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.cuts = [10] * 100
    with pytest.raises(Unreachable):
        await pushing.upload(Bytes(LARGE))
    assert len(pushing.fake.cuts) == 97


async def test_a_registry_that_cannot_tell_gets_all_of_it_again(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.forgets = True
    pushing.fake.cuts = [1000]
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert pushing.fake.asked("upload").count("POST upload") == 2


async def test_a_registry_that_always_loses_the_upload_is_given_up(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(404), "PUT .*uploads/", times=None)
    with pytest.raises(RegistryFailed, match="404"):
        await pushing.upload(Bytes(LARGE))
    assert pushing.fake.asked("upload").count("POST upload") == 3


async def test_a_registry_without_parts_gets_the_blob_whole_and_is_remembered(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    pushing.fake.takes_parts = False
    for blob in (Bytes(LARGE), Bytes(LARGE * 2)):
        await pushing.upload(blob)
        assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == blob.data
    assert pushing.fake.asked("upload") == ["POST upload", "PATCH upload"] + ["POST upload", "PUT upload"] * 2


async def test_a_whole_blob_that_breaks_without_parts_is_sent_again(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.takes_parts = False
    pushing.fake.cuts = [CHUNK, 5000]
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


@pytest.mark.parametrize("code", [400, 404, 415, 416])
async def test_a_part_that_is_refused_makes_it_go_whole(mock_clock: MockClock, pushing: Pushing, code: int) -> None:
    pushing.fake.fault(status(code), "PATCH")
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert parts(pushing.fake)[-1] == ("PUT", None, len(LARGE))
    await pushing.upload(Bytes(LARGE + b"more"))
    assert parts(pushing.fake)[-1] == ("PUT", None, 0)


async def test_a_registry_that_is_elsewhere_than_it_should_be_is_asked(mock_clock: MockClock, pushing: Pushing) -> None:
    """416: it has lost some of it."""

    def moved(offset: int) -> None:
        if offset == CHUNK:
            del next(iter(pushing.fake.sessions.values())).data[1000:]

    destination, blob = await pushing.destination(), Bytes(LARGE)
    await destination.upload(blob.descriptor, blob.read, moved)
    assert [one.status for one in pushing.fake.log[:5]] == [202, 202, 416, 204, 202]
    assert blob.spans[2][0] == 1000
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


async def test_a_part_of_which_only_some_was_taken_is_gone_on_with(mock_clock: MockClock, pushing: Pushing) -> None:
    def half(reply: Reply) -> Reply:
        session = next(iter(pushing.fake.sessions.values()))
        session.data += LARGE[:2000]
        return Reply(202).headed(
            Range="0-1999", Location=f"/v2/{REPOSITORY}/blobs/uploads/{next(iter(pushing.fake.sessions))}"
        )

    pushing.fake.fault(half, "PATCH")
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert blob.spans[:2] == [(0, CHUNK), (2000, 2000 + CHUNK)]
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


async def test_over_tls_it_is_the_same(tmp_path: Path) -> None:
    """Also where the registry is behind a proxy, and takes itself for one without TLS."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (tmp_path / "registry.example").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "registry.example/ca.pem"))
    blob = Bytes(bytes(range(256)) * 16 * 80)
    with PushRegistry(tls=context) as fake:
        fake.elsewhere = f"http://{fake.host}"
        (tmp_path / "registry.example/hosts.toml").write_text(f'server = "{fake.url}"\nca = "ca.pem"\n')
        async with Registry(limits=Limits(chunk=300_000), hosts_path=[tmp_path]) as registry:
            destination = await registry.destination("registry.example", REPOSITORY)
            await destination.upload(blob.descriptor, blob.read, lambda offset: None)
        assert fake.blob(REPOSITORY, blob.descriptor.digest) == blob.data
        assert fake.asked("upload") == ["POST upload", "PATCH upload", "PATCH upload", "PUT upload"]


async def test_relative_locations_are_followed(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.elsewhere = ""
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


async def test_a_query_in_the_location_is_kept(mock_clock: MockClock, pushing: Pushing) -> None:
    await pushing.upload(Bytes(SMALL))
    assert pushing.fake.log[-1].path.partition("?")[2].startswith("state=canary&digest=sha256%3A")


async def test_another_host_gets_the_blob_but_no_login(mock_clock: MockClock, other: PushRegistry) -> None:
    with PushRegistry(token=True) as fake:
        other.sessions, other.repositories, other._blobs = fake.sessions, fake.repositories, fake._blobs
        fake.elsewhere = other.elsewhere = other.url
        pushing = Pushing(mock_clock, fake)
        async with pushing.registry:
            blob = Bytes(LARGE)
            await pushing.upload(blob)
        assert fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
        assert fake.asked("upload") == ["POST upload"] * 2
        assert other.asked("upload")[-1] == "PUT upload"
        assert not [one for one in other.log if "authorization" in one.headers]


@pytest.mark.parametrize("place", ["ftp://127.0.0.1", "http://user@127.0.0.1:1", "http://[", "file://"])
async def test_a_location_that_leads_nowhere_is_refused(mock_clock: MockClock, pushing: Pushing, place: str) -> None:
    pushing.fake.fault(status(202, Location=f"{place}/v2/x"), "POST")
    with pytest.raises(RegistryFailed):
        await pushing.upload(Bytes(SMALL))


async def test_an_upload_without_a_location_is_refused(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(202), "POST")
    with pytest.raises(RegistryFailed, match="without a Location"):
        await pushing.upload(Bytes(SMALL))


async def test_a_redirect_that_loses_the_body_is_not_followed(
    mock_clock: MockClock, pushing: Pushing, other: PushRegistry
) -> None:
    pushing.fake.fault(redirect(f"{other.url}/v2/x", 302), "PUT")
    with pytest.raises(RegistryFailed, match="redirects with 302"):
        await pushing.upload(Bytes(SMALL))
    assert other.log == []


async def test_a_redirect_that_keeps_the_body_is_followed(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(redirect(f"{pushing.fake.url}/v2/{REPOSITORY}/blobs/uploads/?again", 307), "POST")
    blob = Bytes(SMALL)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == SMALL


async def test_a_token_that_ends_in_the_middle_is_renewed(mock_clock: MockClock) -> None:
    with PushRegistry(token=True) as fake:
        pushing = Pushing(mock_clock, fake)
        async with pushing.registry:
            challenge = f'Bearer realm="{fake.url}/token",service="fake"'
            fake.fault(status(401, WWW_Authenticate=challenge), "PATCH")
            blob = Bytes(LARGE)
            await pushing.upload(blob)
        assert fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
        assert fake.requests("token") == 2
        assert set(fake.tokens.values()) == {f"repository:{REPOSITORY}:pull,push"}


async def test_who_may_not_push_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(403, b'{"errors":[{"code":"DENIED"}]}'), "POST", times=None)
    with pytest.raises(AccessDenied, match="403 DENIED"):
        await pushing.upload(Bytes(SMALL))


async def test_a_repository_that_has_to_be_made_first_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}'), "POST", times=None)
    with pytest.raises(NotFound, match="404 NAME_UNKNOWN; make the repository first"):
        await pushing.upload(Bytes(SMALL))


async def test_a_registry_that_takes_no_pushes_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.takes_pushes = False
    with pytest.raises(RegistryFailed, match=r"405.*it takes none; push to a registry that does"):
        await pushing.upload(Bytes(SMALL))


async def test_a_limit_of_requests_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(413), "PUT")
    with pytest.raises(RegistryFailed, match=f"413 to {len(SMALL)} bytes"):
        await pushing.upload(Bytes(SMALL))


async def test_other_bytes_than_were_sent_are_told_and_not_sent_again(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}'), "PUT")
    with pytest.raises(VerificationFailed, match="DIGEST_INVALID"):
        await pushing.upload(Bytes(LARGE))
    assert pushing.fake.sent() == len(LARGE)
    await pushing.upload(Bytes(LARGE))
    assert pushing.fake.asked("upload").count("POST upload") == 2


async def test_a_registry_that_stores_something_else_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(201, Docker_Content_Digest=Bytes(b"else").descriptor.digest), "PUT")
    with pytest.raises(VerificationFailed, match="stored it as"):
        await pushing.upload(Bytes(SMALL))


async def test_rest_is_granted_and_the_upload_goes_on(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(429, Retry_After="7"), "PATCH")
    pushing.fake.fault(status(503, Retry_After="3"), "PUT")
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert [seconds for seconds in pushing.slept if seconds > 2] == [
        pytest.approx(7, abs=0.1),
        pytest.approx(3, abs=0.1),
    ]


async def test_a_registry_that_always_wants_rest_is_given_up(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(429, Retry_After="30"), "PATCH", times=None)
    with pytest.raises(RateLimited):
        await pushing.upload(Bytes(LARGE))
    assert sum(pushing.slept) <= 61


async def test_a_line_that_is_slow_is_no_reason_to_give_up(mock_clock: MockClock, pushing: Pushing) -> None:
    """A part takes minutes, and then it breaks: what went by was progress."""
    pushing.fake.cuts = [CHUNK // 2]
    blob = Bytes(LARGE)

    def slowly(start: int, end: int) -> Outgoing:
        return Outgoing(end - start, lambda: Slow(mock_clock, blob.data[start:end]))

    destination = await pushing.destination()
    await destination.upload(blob.descriptor, slowly, pushing.offsets.append)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert CHUNK // 2 in pushing.offsets


async def test_an_answer_that_is_lost_is_no_reason_to_send_it_again(mock_clock: MockClock, pushing: Pushing) -> None:
    """The registry has stored the blob, and the connection breaks before it says so."""

    def stored(reply: Reply) -> None:
        pushing.fake.add(REPOSITORY, SMALL)

    pushing.fake.fault(stored, "PUT")
    await pushing.upload(Bytes(SMALL))
    assert pushing.fake.asked() == ["POST upload", "PUT upload", "HEAD blobs"]


async def test_a_registry_that_is_gone_is_given_up(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(close(), "", times=None)
    with pytest.raises(Unreachable):
        await pushing.upload(Bytes(SMALL))
    assert pushing.fake.requests() == 3


async def test_a_push_that_was_broken_off_goes_on_in_the_next(mock_clock: MockClock, pushing: Pushing) -> None:
    blob, stopped = Bytes(LARGE), trio.Event()

    def stopping(start: int, end: int) -> Outgoing:
        return blob.read(start, end) if start < 2 * CHUNK else Outgoing(end - start, lambda: Stopping(b"x", stopped))

    async with trio.open_nursery() as nursery:
        destination = await pushing.destination()
        nursery.start_soon(destination.upload, blob.descriptor, stopping, pushing.offsets.append)
        await stopped.wait()
        nursery.cancel_scope.cancel()
    session = next(iter(pushing.fake.sessions.values()))
    del session.data[2 * CHUNK :]
    pushing.fake.log.clear()
    await pushing.upload(blob)
    assert pushing.fake.asked("upload")[:2] == ["GET upload", "PATCH upload"]
    assert pushing.fake.sent() == len(LARGE) - 2 * CHUNK
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


async def test_what_was_broken_off_goes_on_although_a_mount_has_begun_another_upload(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    pushing.fake.mounts = False
    blob = Bytes(LARGE)
    pushing.fake.fault(status(403), "PUT", times=1)
    with pytest.raises(AccessDenied):
        await pushing.upload(blob)
    pushing.fake.log.clear()
    destination = await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/base"]) is None
    await destination.upload(blob.descriptor, blob.read, pushing.offsets.append)
    assert pushing.fake.sent() < CHUNK
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert pushing.fake.sessions == {}


async def test_an_old_upload_that_the_registry_has_forgotten_costs_a_request(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    pushing.fake.fault(status(403), "PUT", times=1)
    with pytest.raises(AccessDenied):
        await pushing.upload(Bytes(LARGE))
    pushing.fake.sessions.clear()
    pushing.fake.log.clear()
    await pushing.upload(Bytes(LARGE))
    assert pushing.fake.asked("upload")[:3] == ["GET upload", "POST upload", "PATCH upload"]
    assert pushing.slept == []


async def test_a_failure_to_read_the_blob_is_told_as_such(mock_clock: MockClock, pushing: Pushing) -> None:
    class Failing:
        def __aiter__(self) -> Failing:
            return self

        async def __anext__(self) -> bytes:
            raise StorageFailed("content x: is cut short on disk")

    destination, blob = await pushing.destination(), Bytes(SMALL)
    with pytest.raises(StorageFailed):
        await destination.upload(
            blob.descriptor, lambda start, end: Outgoing(end - start, Failing), lambda offset: None
        )


async def test_a_blob_is_taken_over_from_another_repository(mock_clock: MockClock) -> None:
    with PushRegistry(token=True) as fake:
        digest = fake.add("team/base", SMALL)
        pushing = Pushing(mock_clock, fake)
        async with pushing.registry:
            destination = await pushing.destination()
            assert not await destination.has_blob(digest)
            assert await destination.mount(digest, ["team/none", "team/base"]) == "team/base"
            assert await destination.has_blob(digest)
        assert fake.sent() == 0
        assert fake.sessions == {}, "the refused mount's upload was left open"
        assert f"repository:{REPOSITORY}:pull,push repository:team/base:pull" in fake.tokens.values()


async def test_a_mount_that_is_refused_has_begun_the_upload(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.mounts = False
    blob = Bytes(SMALL)
    pushing.fake.add("team/base", SMALL)
    destination = await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/base"]) is None
    await destination.upload(blob.descriptor, blob.read, pushing.offsets.append)
    assert pushing.fake.asked("upload") == ["POST upload", "PUT upload"]


async def test_of_several_refused_mounts_one_upload_stays_open_and_is_used(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    blob, destination = Bytes(SMALL), await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/a", "team/b", "team/c"]) is None
    assert len(pushing.fake.sessions) == 1
    await (await pushing.destination()).upload(blob.descriptor, blob.read, pushing.offsets.append)
    asked = ["POST upload", *["POST upload", "DELETE upload"] * 2, "PUT upload"]
    assert pushing.fake.asked("upload") == asked
    assert pushing.fake.sessions == {}


@pytest.mark.parametrize("code", [404, 405, 500])
async def test_an_upload_that_cannot_be_ended_harms_nobody(mock_clock: MockClock, pushing: Pushing, code: int) -> None:
    pushing.fake.fault(status(code), "DELETE", times=None)
    destination, digest = await pushing.destination(), Bytes(SMALL).descriptor.digest
    assert await destination.mount(digest, ["team/a"]) is None
    await destination.leave(digest)
    await destination.leave(digest)
    assert pushing.fake.asked("upload").count("DELETE upload") == (3 if code == 500 else 1)


@pytest.mark.parametrize("code", [400, 403, 404, 500])
async def test_a_registry_that_knows_no_mounts_gets_the_blob(
    mock_clock: MockClock, pushing: Pushing, code: int
) -> None:
    pushing.fake.fault(status(code), "POST .*mount=", times=None)
    blob = Bytes(SMALL)
    destination = await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/base"]) is None
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == SMALL


async def test_at_most_so_many_blobs_go_at_a_time(mock_clock: MockClock, pushing: Pushing) -> None:
    running, most = 0, 0
    destination = await pushing.destination()

    async def send(number: int) -> None:
        nonlocal running, most
        blob = Bytes(SMALL + bytes([number]))

        def read(start: int, end: int) -> Outgoing:
            nonlocal running, most
            running += 1
            most = max(most, running)
            return blob.read(start, end)

        def moved(offset: int) -> None:
            nonlocal running
            running -= offset > 0

        await destination.upload(blob.descriptor, read, moved)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(send, number)
    assert 1 < most <= 4


async def serve_and_stop(stream: trio.SocketStream, answered: bool) -> None:
    """Begin uploads, and read nothing of what is sent; `answered`: or say at once that it is too much, and read on."""
    place = b"HTTP/1.1 202 Accepted\r\nLocation: /v2/x\r\nContent-Length: 0\r\n\r\n"
    nothing = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
    async with stream:
        while (head := await stream.receive_some(1000)).startswith((b"POST", b"HEAD", b"GET")):
            await stream.send_all(place if head.startswith(b"POST") else nothing)
        if not answered:
            await trio.sleep_forever()
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        while await stream.receive_some(1 << 20):
            pass


@pytest.mark.parametrize(("answered", "error"), [(False, TimedOut), (True, RegistryFailed)])
async def test_who_stops_reading_is_left_after_a_while_and_who_answers_early_is_heard(
    answered: bool, error: type[ImgfsError]
) -> None:
    blob = Bytes(bytes(32 << 20))
    async with trio.open_nursery() as nursery:
        serve = partial(serve_and_stop, answered=answered)
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with Registry(limits=Limits(silence=0.3, backoff=0.01)) as registry:
            destination = await registry.destination(host, REPOSITORY)
            with trio.fail_after(60), pytest.raises(error):
                await destination.upload(blob.descriptor, blob.read, lambda offset: None)
        nursery.cancel_scope.cancel()


async def test_no_message_holds_the_upload_s_address(mock_clock: MockClock, pushing: Pushing) -> None:
    failures: list[ImgfsError] = []
    for code in (400, 403, 404, 405, 413, 429, 500):
        pushing.fake.reset()
        pushing.fake.fault(status(code), "PUT", times=None)
        with pytest.raises(ImgfsError) as caught:
            await pushing.upload(Bytes(SMALL))
        failures.append(caught.value)
    assert not [one for one in failures if "canary" in one.message]
    assert all(f"{pushing.fake.host}/{REPOSITORY}" in one.message for one in failures)
