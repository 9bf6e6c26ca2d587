"""A registry with mirrors, configured in hosts.toml."""

from __future__ import annotations

from pathlib import Path

from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY

HOST = "registry.example"


def fill(mirror: FakeRegistry) -> None:
    mirror.add_manifest(REPOSITORY, "1", MANIFEST)
    mirror.add_blob(BLOB)


def write(directory: Path, server: FakeRegistry, text: str) -> None:
    (directory / HOST).mkdir(exist_ok=True)
    (directory / HOST / "hosts.toml").write_text(f'server = "{server.url}"\n{text}')


def tables(*mirrors: FakeRegistry, setting: str = "") -> str:
    return "".join(f'[host."{one.url}"]\n{setting}\n' for one in mirrors)


def kill(fake: FakeRegistry) -> None:
    """Close every connection without an answer."""
    fake.fault(faults.close(), times=None)
