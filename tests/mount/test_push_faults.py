"""Faults of the target registry of a push, through a real mount.

The tests check the errno, the error message, and that the next push succeeds. All cases run concurrently in one
fixture. Each test checks the outcome of one case.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.testing.faults import Action, close, redirect, stall, status
from imgfs.testing.images import Image
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from imgfs.testing.uploads import PushRegistry
from tests.mount.scene import CONFIG, error_of, small
from tests.support.mounted import Mounted

BOUND = 60.0
"""Deadline for each push, in seconds. The timeouts of the mount add up to a tenth of this value."""
LIMITS = """[plugins.registry.http]
connect_seconds = 2.0
silence_seconds = 2.0
taking_seconds = 2.0
pause_seconds = 0.3
tries = 2
"""
BEGIN, SEND, NAME = "POST .*uploads/", "PUT .*uploads/", "PUT .*/manifests/"
WRONG = status(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')


def unanswered(reply: Reply) -> Reply:
    """Never answer, and do not process the request."""
    return Reply(201, hold=-1)


FAULTS: dict[str, tuple[str, Action, int, str]] = {
    "nobody is asked for an upload": (BEGIN, close(), errno.EHOSTUNREACH, "closed"),
    "no answer to the beginning": (BEGIN, stall(), errno.ETIMEDOUT, "in time"),
    "401 again and again": (BEGIN, status(401), errno.EACCES, "401"),
    "403": (BEGIN, status(403), errno.EACCES, "403"),
    "404 of the repository": (BEGIN, status(404), errno.ENOENT, "404"),
    "405": (BEGIN, status(405), errno.EREMOTEIO, "405"),
    "501": (BEGIN, status(501), errno.EREMOTEIO, "501"),
    "429": (BEGIN, status(429), errno.EDQUOT, "429"),
    "429 for an hour": (BEGIN, status(429, Retry_After="3600"), errno.EDQUOT, "HOST"),
    "500": (BEGIN, status(500), errno.EREMOTEIO, "500"),
    "503 for an hour": (BEGIN, status(503, Retry_After="3600"), errno.EREMOTEIO, "HOST"),
    "a login page": (BEGIN, status(200, b"<html>", Content_Type="text/html"), errno.EREMOTEIO, "Location"),
    "no place": (BEGIN, status(202), errno.EREMOTEIO, "Location"),
    "a place that is none": (BEGIN, status(202, Location="gopher://x/"), errno.EREMOTEIO, "http"),
    "a circle": (BEGIN, redirect("/v2/box/blobs/uploads/"), errno.EREMOTEIO, "circle"),
    "a redirect that loses the bytes": (SEND, redirect("/v2/x", 303), errno.EREMOTEIO, "303"),
    "bytes cut off": (SEND, close(), errno.EHOSTUNREACH, "closed"),
    "no answer to the bytes": (SEND, unanswered, errno.ETIMEDOUT, "in time"),
    "bytes too many": (SEND, status(413), errno.EREMOTEIO, "413"),
    "bytes refused": (SEND, status(400), errno.EREMOTEIO, "400"),
    "other bytes": (SEND, WRONG, errno.EBADMSG, "DIGEST_INVALID"),
    "an upload that is forgotten": (SEND, status(404), errno.EREMOTEIO, "404"),
    "429 to the bytes": (SEND, status(429), errno.EDQUOT, "429"),
    "a manifest refused": (NAME, status(400), errno.EREMOTEIO, "400"),
    "a manifest denied": (NAME, status(403), errno.EACCES, "403"),
    "a manifest cut off": (NAME, close(), errno.EHOSTUNREACH, "closed"),
    "a manifest unanswered": (NAME, unanswered, errno.ETIMEDOUT, "in time"),
}
"""For each case: the request, the fault in its response, the errno of the push, and text in the error message."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a push (`errno` is 0 on success), and whether the next push without the fault succeeded."""

    errno: int
    seconds: float
    told: str
    requests: int
    mended: bool


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    made = small("push-faults")
    with FakeRegistry() as source, Mounted(tmp_path_factory.mktemp("push-faults"), f"{CONFIG}{LIMITS}") as mount:
        mount.start()
        made.add_to(source, "box", "1")
        image = mount.image(f"{source.host}/box:1")
        (image / "pull").read_bytes()
        for n in range(len(made.layers)):
            (image / "layers" / str(n)).read_bytes()
        (image / "config.json").read_bytes()
        with ThreadPoolExecutor(len(FAULTS)) as threads:
            struck = {name: threads.submit(strike, image, made, name) for name in FAULTS}
        yield {name: one.result() for name, one in struck.items()}


def strike(image: Path, made: Image, name: str) -> Outcome:
    """Push to a registry with the fault, then push to the same registry without the fault."""
    match, action, _, _ = FAULTS[name]
    with PushRegistry() as target:
        door = image / "push" / target.host / "box:1"
        target.fault(action, match, times=None)
        before, code = time.monotonic(), 0
        try:
            door.read_bytes()
        except OSError as error:
            code = error.errno or -1
        seconds, told, requests = time.monotonic() - before, error_of(door), len(target.log)
        target.reset()
        door.read_bytes()
        mended = target.manifest("box", "1") == (made.document, made.media_type) and error_of(door) == ""
        return Outcome(code, seconds, told.replace(target.host, "HOST"), requests, mended)


@pytest.mark.parametrize("name", FAULTS)
def test_push_fault_gives_expected_errno_and_next_push_succeeds(outcomes: dict[str, Outcome], name: str) -> None:
    outcome, (_, _, expected, word) = outcomes[name], FAULTS[name]
    assert errno.errorcode.get(outcome.errno) == errno.errorcode[expected], outcome.told
    assert "HOST" in outcome.told
    assert word in outcome.told
    assert "canary" not in outcome.told
    assert outcome.seconds < BOUND
    assert outcome.requests < 40
    assert outcome.mended
