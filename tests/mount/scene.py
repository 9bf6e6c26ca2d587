"""Fixtures and helpers of all mount tests: a registry, a mount, and assertions about errno, requests and waiting."""

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
"""The platform of the test images, on every host."""


class Scene:
    """A registry and a mount. `serve` adds images to the registry; `name` returns their paths in the tree."""

    def __init__(self, registry: FakeRegistry, mount: Mounted) -> None:
        self.registry = registry
        self.mount = mount

    @property
    def images(self) -> Path:
        """images/."""
        return self.mount.path / "images"

    def serve(self, made: Image | BuiltIndex, repository: str, tag: str = "1") -> Path:
        """Add `made` to the registry. Return the path of its name in the tree, which nothing has looked up yet."""
        made.add_to(self.registry, repository, tag)
        return self.name(repository, tag)

    def name(self, repository: str, tag: str = "1") -> Path:
        """Return the path of a name."""
        return self.images / self.registry.host / f"{repository}:{tag}"

    def directory(self, digest: Digest) -> Path:
        """Return images/<digest>."""
        return self.images / digest

    def blob(self, digest: Digest) -> Path:
        """Return content/<digest>."""
        return self.mount.content / digest

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Assert that the block sends no request to the registry."""
        with self.requests():
            yield

    @contextmanager
    def requests(self, *expected: str) -> Iterator[None]:
        """Assert that the block sends exactly these kinds of requests (Request.kind), in any order."""
        before = len(self.registry.log)
        yield
        made = self.registry.log[before:]
        assert sorted(one.kind for one in made) == sorted(expected), [f"{one.method} {one.path}" for one in made]


@contextmanager
def serving(directory: Path, config: str = CONFIG) -> Generator[Scene]:
    """Yield a scene with an empty state directory below `directory`."""
    with FakeRegistry() as registry, Mounted(directory, config) as mount:
        mount.start()
        yield Scene(registry, mount)


@contextmanager
def refused(code: int) -> Iterator[None]:
    """Assert that the system call in the block fails with `code`."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code], str(caught.value)


def until(condition: Callable[[], T]) -> T:
    """Call `condition` until it is true, and return its result. An OSError counts as false."""
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
    """Run a program of the host as a user would."""
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment
    )


def succeed(*command: str | Path) -> str:
    """As `run`. Assert exit code 0 and empty stderr, and return stdout."""
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def error_of(path: Path) -> str:
    """Return `user.imgfs.error`, or "" if there is none."""
    return os.getxattr(path, _ERROR).decode() if _ERROR in os.listxattr(path) else ""


def status_of(directory: Path) -> dict[str, Any]:
    """Return the decoded status.json of an image."""
    return json.loads((directory / "status.json").read_bytes())


def small(mark: str, *, layers: int = 1) -> Image:
    """Return an image that shares no blob with another `mark`: `/mark`, and `/n` with a file and a link for each
    layer.
    """
    return image([marked_layer(f"{mark}/{number}", number) for number in range(layers)], platform=AMD64)


def marked_layer(mark: str, number: int = 0) -> BuiltLayer:
    """Return one layer of `small`."""
    return layer(
        [
            File("mark", f"{mark}\n".encode()),
            Dir(f"{number}"),
            File(f"{number}/file", f"file of {mark}\n".encode() * 100),
            Symlink(f"{number}/link", "file"),
        ]
    )


def assert_verified(state: Path) -> None:
    """Assert that each blob and layer in a state directory has its digest.

    Unfinished downloads are not checked, because they are resumed. A layer that was just read is waited for.
    """
    until(lambda: not list(state.glob("layers/*/.tmp-*")))
    for path in state.glob("blobs/*/*/*"):
        assert _hex(path, path.parent.parent.name) == path.name
    for path in state.glob("layers/*/*"):
        assert _hex(path / "tar", path.parent.name) == path.name


def _hex(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
