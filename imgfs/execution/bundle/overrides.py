"""What somebody wants to run, before anybody knows whether it can be: `imgfs run`'s command line as a value."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from imgfs.errors import Invalid, NotFound

Network = Literal["host", "none"]
_SIZE = r"([0-9]+)([bkmgtBKMGT]?)"
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
WORDS_MAX = 1 << 20
"""Bytes of arguments, environment and labels together: half of what execve(2) takes."""
MEMORY_LEAST = 6 << 20
"""Bytes; with less not even the runtime's own start fits in."""


class Volume(msgspec.Struct, frozen=True):
    """A directory or file of the host, shown in the container."""

    source: str
    destination: str
    read_only: bool = False


class Overrides(msgspec.Struct, frozen=True):
    """What is to run and how. Empty and None mean: as the image says.

    `cwd` of relative volumes and the values of `-e NAME` are resolved before (parse_volume, parse_variable).
    """

    arguments: tuple[str, ...] = ()
    entrypoint: str | None = None
    """A program in place of the image's; empty: none, so `arguments` are the whole command."""
    env: Mapping[str, str | None] | None = None
    """Laid over the image's; None takes a variable away."""
    user: str | None = None
    working_dir: str | None = None
    volumes: tuple[Volume, ...] = ()
    network: Network = "none"
    read_only: bool = False
    terminal: bool = False
    interactive: bool = False
    memory: int | None = None
    """Bytes that it may use; above that the kernel kills."""

    def check(self) -> None:
        """Raise Invalid for what no process can have."""
        words = [*self.arguments, self.entrypoint or "", self.user or "", self.working_dir or ""]
        for name, value in (self.env or {}).items():
            words += [name, value or ""]
        if any("\0" in word for word in words):
            raise Invalid("run: a NUL in an argument, a name or a value")
        places = [place for one in self.volumes for place in (one.source, one.destination)]
        for word in filter(_is_not_text, (*words, *places)):
            raise Invalid(f"run: {word[:80]!r} is not UTF-8, and an OCI runtime's config holds nothing else")
        if sum(len(word) for word in words) > WORDS_MAX:
            raise Invalid(f"run: arguments and environment are over {WORDS_MAX} bytes")


def _is_not_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # what os.fsdecode made of other bytes
        return True
    return False


def parse_volume(text: str) -> Volume:
    """Read `SRC:DST[:ro|rw]`; a relative SRC is completed. Raises Invalid, and NotFound where SRC is not there."""
    source, colon, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    if not (source and colon and destination.startswith("/")) or mode not in ("", "ro", "rw") or "\0" in text:
        raise Invalid(f"volume {text[:200]!r}: expected SRC:DST or SRC:DST:ro, with DST an absolute path")
    destination = posixpath.normpath("/" + destination.lstrip("/"))
    if destination == "/":
        raise Invalid(f"volume {text[:200]!r}: cannot lie over the root of the image")
    path = os.path.abspath(source)
    if not os.path.exists(path):
        raise NotFound(f"volume {text[:200]!r}: {path} does not exist; make it first")
    return Volume(path, destination, mode == "ro")


def parse_variable(text: str, environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Read `NAME=VALUE`, or `NAME` for the value that `environment` has. Raises Invalid."""
    name, equals, value = text.partition("=")
    if not name:
        raise Invalid(f"variable {text[:80]!r}: expected NAME=VALUE or NAME")
    return name, value if equals else environment.get(name)


def parse_memory(text: str) -> int:
    """Read a size in bytes, or with k, m, g behind it. Raises Invalid."""
    found = re.fullmatch(_SIZE, text)
    size = int(found[1]) * _UNITS[found[2].lower()] if found and len(text) < 20 else 0
    if not MEMORY_LEAST <= size < 1 << 60:
        raise Invalid(
            f"memory {text[:40]!r}: expected bytes, or a number with k, m or g, {MEMORY_LEAST >> 20}m or more"
        )
    return size
