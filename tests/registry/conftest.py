"""Fixtures: a client, registries that answer it, and a clock that only tests and waits advance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.testing.registry import FakeRegistry
from tests.registry.credentials.desk import Desk
from tests.registry.logins import PASSWORD, with_desk
from tests.registry.scene import Scene
from tests.support.token_server import TokenServer, token_server


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def guarded() -> Iterator[FakeRegistry]:
    """A registry that requires bearer tokens."""
    with FakeRegistry(token=True) as fake:
        yield fake


@pytest.fixture
def storage() -> Iterator[FakeRegistry]:
    """The storage to which a registry redirects: another origin."""
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def scene(mock_clock: MockClock, fake: FakeRegistry) -> AsyncIterator[Scene]:
    """A test must request `mock_clock` itself, because the trio run takes its clock from the test's fixtures."""
    scene = Scene(mock_clock, fake)
    async with scene.registry:
        yield scene


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """An empty home directory for logins."""
    return Desk(tmp_path)


@pytest.fixture
async def private(mock_clock: MockClock, desk: Desk, fake: FakeRegistry) -> AsyncIterator[Scene]:
    """A registry that requires Basic, and an empty desk."""
    fake.logins["user"] = PASSWORD
    async with with_desk(mock_clock, fake, desk) as scene:
        yield scene


@pytest.fixture
def tokens(guarded: FakeRegistry) -> Iterator[TokenServer]:
    """The token endpoint that the guarded registry names."""

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
    """A registry that requires bearer tokens, whose endpoint requires a login."""
    async with with_desk(mock_clock, guarded, desk) as scene:
        yield scene
