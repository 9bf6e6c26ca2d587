"""What every test of the tree needs: a registry with a mount beside it, and words for errno, counting and waiting."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.build import AMD64, BuiltIndex, BuiltLayer, Image, image, layer
from imgfs.testing.entries import Dir, File, Symlink
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import Mounted

T = TypeVar("T")

PATIENCE = 20
POLL = 0.02
_ERROR = "user.imgfs.error"
CONFIG = 'platform = "linux/amd64"\n'
"""The images here are of this platform, whatever the machine is."""


class Scene:
    """A registry and a mount. `serve` adds images to the registry, `name` says how the tree calls them."""

    def __init__(self, registry: FakeRegistry, mount: Mounted) -> None:
        self.registry = registry
        self.mount = mount

    @property
    def images(self) -> Path:
        """images/."""
        return self.mount.path / "images"

    def serve(self, made: Image | BuiltIndex, repository: str, tag: str = "1") -> Path:
        """Put `made` at the registry; returns the path of its name in the tree, which nobody has looked up yet."""
        made.add_to(self.registry, repository, tag)
        return self.name(repository, tag)

    def name(self, repository: str, tag: str = "1") -> Path:
        """The path of a name."""
        return self.images / self.registry.host / f"{repository}:{tag}"

    def directory(self, digest: Digest) -> Path:
        """images/<digest>."""
        return self.images / digest

    def blob(self, digest: Digest) -> Path:
        """content/<digest>."""
        return self.mount.content / digest

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Assert that the registry is not asked for anything inside."""
        with self.requests():
            yield

    @contextmanager
    def requests(self, *expected: str) -> Iterator[None]:
        """Assert that exactly these kinds of requests (Request.kind) are made inside, in any order."""
        before = len(self.registry.log)
        yield
        made = self.registry.log[before:]
        assert sorted(one.kind for one in made) == sorted(expected), [f"{one.method} {one.path}" for one in made]


@contextmanager
def serving(directory: Path, config: str = CONFIG) -> Generator[Scene]:
    """A scene with an empty state directory below `directory`."""
    with FakeRegistry() as registry, Mounted(directory, config) as mount:
        mount.start()
        yield Scene(registry, mount)


@contextmanager
def refused(code: int) -> Iterator[None]:
    """Assert that the system call inside fails with `code`."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code], str(caught.value)


def until(condition: Callable[[], T]) -> T:
    """Ask again and again until `condition` is true, and return what it said. Failures of system calls are a no."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if found := condition():
                return found
        except OSError:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the system, as a user would."""
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment
    )


def succeed(*command: str | Path) -> str:
    """As `run`; asserts that it exits with 0 and says nothing on stderr. Returns stdout."""
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def error_of(path: Path) -> str:
    """`user.imgfs.error`; empty where there is none."""
    return os.getxattr(path, _ERROR).decode() if _ERROR in os.listxattr(path) else ""


def status_of(directory: Path) -> dict[str, Any]:
    """status.json of an image, decoded."""
    return json.loads((directory / "status.json").read_bytes())


def small(mark: str, *, layers: int = 1) -> Image:
    """An image whose blobs no other `mark` shares: `/mark` and `/n`, a directory a layer with a file and a link."""
    return image([marked_layer(f"{mark}/{number}", number) for number in range(layers)], platform=AMD64)


def marked_layer(mark: str, number: int = 0) -> BuiltLayer:
    """One layer of `small`."""
    return layer(
        [
            File("mark", f"{mark}\n".encode()),
            Dir(f"{number}"),
            File(f"{number}/file", f"file of {mark}\n".encode() * 100),
            Symlink(f"{number}/link", "file"),
        ]
    )


def assert_verified(state: Path) -> None:
    """Assert that a state directory holds nothing but what it promises: each blob and layer has its digest.

    What is on its way in is no promise: a download that broke off waits there to be resumed. A layer that was just
    read is waited for.
    """
    until(lambda: not list(state.glob("layers/*/.tmp-*")))
    for path in state.glob("blobs/*/*/*"):
        assert _hex(path, path.parent.parent.name) == path.name
    for path in state.glob("layers/*/*"):
        assert _hex(path / "tar", path.parent.name) == path.name


def _hex(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
