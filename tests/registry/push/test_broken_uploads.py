"""Uploads that break or stall: arrived bytes are not sent again, and the client gives up on a dead registry."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import (
    AccessDenied,
    ImgfsError,
    RegistryFailed,
    StorageFailed,
    TimedOut,
    Unreachable,
)
from imgfs.registry.client import Registry
from imgfs.registry.http.request import Outgoing
from imgfs.registry.limits import Limits
from imgfs.testing.faults import close, status
from imgfs.testing.reply import Reply
from tests.registry.push.pushing import CHUNK, LARGE, REPOSITORY, SMALL, Bytes, Pushing, Slow, Stopping


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


async def test_a_registry_that_is_elsewhere_than_it_should_be_is_asked(mock_clock: MockClock, pushing: Pushing) -> None:
    """416 means that the registry has lost a part of the upload."""

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


async def test_a_line_that_is_slow_is_no_reason_to_give_up(mock_clock: MockClock, pushing: Pushing) -> None:
    """A part takes minutes and then breaks. The bytes that were sent count as progress."""
    pushing.fake.cuts = [CHUNK // 2]
    blob = Bytes(LARGE)

    def slowly(start: int, end: int) -> Outgoing:
        return Outgoing(end - start, lambda: Slow(mock_clock, blob.data[start:end]))

    destination = await pushing.destination()
    await destination.upload(blob.descriptor, slowly, pushing.offsets.append)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert CHUNK // 2 in pushing.offsets


async def test_an_answer_that_is_lost_is_no_reason_to_send_it_again(mock_clock: MockClock, pushing: Pushing) -> None:
    """The registry stores the blob, and the connection breaks before the answer."""

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


async def serve_and_stop(stream: trio.SocketStream, answered: bool) -> None:
    """Begin uploads without reading their data. With `answered`, answer 413 at once and then read the data."""
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
