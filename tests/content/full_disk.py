"""A disk of a few pages, which fills up at once, and system calls that fail on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.kernel.mounts import unmount
from tests.support.programs import run


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes at the new directory `at`."""
    at.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(at))
    try:
        yield at
    finally:
        unmount(str(at), detach=True)


def fill(disk: Path) -> Path:
    """Fill the disk completely; return the file to remove later."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return path
    raise AssertionError("the disk has no end")


class Calls:
    """Record the path of every fsync, rename and link, in order. `fail` makes one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        self.errors: dict[str, OSError] = {}
        for name in ("fsync", "rename", "link"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            subject = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[-1])
            self.seen.append((name, subject))
            if name in self.errors:
                raise self.errors[name]
            real(*arguments)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]
