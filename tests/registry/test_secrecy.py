"""Secrets: no message and no log contains a login or a token, whatever fails."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.errors import ImgfsError, Malformed
from imgfs.log import JsonLines
from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.credentials.desk import Desk
from tests.registry.logins import PASSWORD, hosts_toml, log_in, with_desk
from tests.registry.scene import Scene
from tests.support.token_server import basic


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
"""A failure of a request that contained a login."""


def echo(scene: Scene, storage: FakeRegistry) -> None:
    """Answer with a login page that repeats the login of the request in its body and its content type."""
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
async def test_the_answer_of_a_token_endpoint_is_not_repeated(
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
    """Return everything that any logger logs while the block runs, from the lowest level on."""
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
