"""Registries that require logins, and a record of the logins that they received."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from trio.testing import MockClock

from imgfs.registry.credentials.store import Credentials
from imgfs.testing.registry import FakeRegistry
from tests.registry.credentials.desk import Desk
from tests.registry.scene import Scene

PASSWORD = "canary-password"


@asynccontextmanager
async def with_desk(
    clock: MockClock, fake: FakeRegistry, desk: Desk, hosts_path: Sequence[Path] = ()
) -> AsyncIterator[Scene]:
    """A scene with the logins of `desk`."""
    scene = Scene(clock, fake, credentials=Credentials(None, desk.identity), hosts_path=hosts_path)
    async with scene.registry:
        yield scene


def log_in(desk: Desk, scene: Scene, password: str = PASSWORD, user: str = "user") -> None:
    desk.login(desk.auth, user, password, scene.host)


def sent(fake: FakeRegistry) -> list[str]:
    """Return the scheme with which each request was authorized, or ""."""
    return [request.headers.get("authorization", "").partition(" ")[0] for request in fake.log]


def hosts_toml(directory: Path, fake: FakeRegistry, text: str) -> list[Path]:
    """Return a hosts_path that contains this hosts.toml for the registry."""
    path = directory / "certs.d" / fake.host / "hosts.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return [directory / "certs.d"]
