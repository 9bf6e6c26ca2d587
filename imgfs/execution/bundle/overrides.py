"""What the caller overrides of the image's configuration: the options of `imgfs run` as a value."""

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
"""Bytes of arguments, environment and labels together: half of the limit of execve(2)."""
MEMORY_LEAST = 6 << 20
"""Bytes. With less, even the runtime cannot start."""


class Volume(msgspec.Struct, frozen=True):
    """A directory or file of the host to show in the container."""

    source: str
    destination: str
    read_only: bool = False


class Overrides(msgspec.Struct, frozen=True):
    """What to run and how. Empty and None mean that the image decides.

    Relative volumes and `-e NAME` are resolved before (parse_volume, parse_variable).
    """

    arguments: tuple[str, ...] = ()
    entrypoint: str | None = None
    """A program in place of the image's entrypoint. If empty, `arguments` are the whole command."""
    env: Mapping[str, str | None] | None = None
    """Variables over those of the image. None removes a variable."""
    user: str | None = None
    working_dir: str | None = None
    volumes: tuple[Volume, ...] = ()
    network: Network = "none"
    read_only: bool = False
    terminal: bool = False
    interactive: bool = False
    memory: int | None = None
    """Limit of memory in bytes. Above it, the kernel kills."""

    def check(self) -> None:
        """Raise Invalid for values that no process can have."""
        words = [*self.arguments, self.entrypoint or "", self.user or "", self.working_dir or ""]
        for name, value in (self.env or {}).items():
            words += [name, value or ""]
        if any("\0" in word for word in words):
            raise Invalid("run: an argument, a name or a value contains a NUL")
        places = [place for one in self.volumes for place in (one.source, one.destination)]
        for word in filter(_is_not_text, (*words, *places)):
            raise Invalid(f"run: {word[:80]!r} is not UTF-8, which an OCI runtime's config requires")
        if sum(len(word) for word in words) > WORDS_MAX:
            raise Invalid(f"run: arguments and environment are over {WORDS_MAX} bytes")


def _is_not_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # surrogates that os.fsdecode made of other bytes
        return True
    return False


def parse_volume(text: str) -> Volume:
    """Parse `SRC:DST[:ro|rw]` and make SRC absolute. Raises Invalid, and NotFound if SRC does not exist."""
    source, colon, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    if not (source and colon and destination.startswith("/")) or mode not in ("", "ro", "rw") or "\0" in text:
        raise Invalid(f"volume {text[:200]!r}: expected SRC:DST or SRC:DST:ro, with DST an absolute path")
    destination = posixpath.normpath("/" + destination.lstrip("/"))
    if destination == "/":
        raise Invalid(f"volume {text[:200]!r}: cannot replace the root of the image")
    path = os.path.abspath(source)
    if not os.path.exists(path):
        raise NotFound(f"volume {text[:200]!r}: {path} does not exist; create it first")
    return Volume(path, destination, mode == "ro")


def parse_variable(text: str, environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Parse `NAME=VALUE`, or `NAME` with its value in `environment`. Raises Invalid."""
    name, equals, value = text.partition("=")
    if not name:
        raise Invalid(f"variable {text[:80]!r}: expected NAME=VALUE or NAME")
    return name, value if equals else environment.get(name)


def parse_memory(text: str) -> int:
    """Parse a size in bytes, or with the suffix k, m, g or t. Raises Invalid."""
    found = re.fullmatch(_SIZE, text)
    size = int(found[1]) * _UNITS[found[2].lower()] if found and len(text) < 20 else 0
    if not MEMORY_LEAST <= size < 1 << 60:
        raise Invalid(
            f"memory {text[:40]!r}: expected bytes, or a number with suffix k, m or g, {MEMORY_LEAST >> 20}m or more"
        )
    return size
