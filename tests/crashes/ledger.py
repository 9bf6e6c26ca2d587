"""The promises made to one worker, and whether what is seen after a crash keeps them.

A picture is a set of facts by key. An acknowledged operation changes the picture. An operation that was not
acknowledged allows several pictures: the one before, the one after, and those that the operation passes through.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plain:
    """A fact that holds exactly or not at all: the target of a link, the labels of a blob, the links of a lease."""

    value: object


@dataclass(frozen=True, slots=True)
class Bytes:
    """The bytes that are seen of an unfinished write."""

    data: bytes
    total: int | None


@dataclass(frozen=True, slots=True)
class Writing:
    """An unfinished write: a prefix of the noise of `mark`, from `floor` to `top` bytes, `synced` after a power cut."""

    mark: str
    floor: int
    synced: int
    top: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A user's snapshot. Files of a `loose` snapshot were not synced: a power cut may remove or shorten them."""

    kind: str
    parent: str | None
    files: Mapping[str, bytes]
    label: bytes | None = None
    loose: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """A name or link that leads to an image. If promised `whole`, the image is whole. Else it may be incomplete."""

    whole: bool


Fact = Plain | Bytes | Writing | Snapshot | Image
Picture = dict[str, Fact | None]
"""Changes to a picture. None removes a key."""


def noise(mark: str, size: int) -> bytes:
    """Return the bytes of a mark."""
    return hashlib.shake_256(mark.encode()).digest(size)


class Ledger:
    """The promises made to one worker, and a journal of them that helps to explain a failure."""

    def __init__(self, journal: Path) -> None:
        self.facts: dict[str, Fact] = {}
        self.is_closed = False
        """Whether the power is off: acknowledgements from now on are ignored."""
        self.done = 0
        """Operations acknowledged so far."""
        self._journal = journal
        self._allowed: list[dict[str, Fact]] = []

    @contextmanager
    def doing(self, what: str, after: Picture, *, between: Picture | None = None) -> Iterator[None]:
        """Do one operation in the block.

        Until the block ends, the pictures before, `after` and `between` are all allowed.
        """
        self.note(f"{what} ...")
        changes = [after] if between is None else [between, after]
        self._allowed = [changed(self.facts, one) for one in changes]
        yield
        if self.is_closed:
            raise OSError(errno.ENOTCONN, "the power is off")
        self.facts = self._allowed[-1]
        self._allowed = []
        self.done += 1
        self.note(f"{what}: acknowledged")

    def note(self, line: str) -> None:
        """Write a line to the journal."""
        with self._journal.open("a") as file:
            file.write(f"{line}\n")

    def allowed(self) -> list[dict[str, Fact]]:
        """Return the pictures that are allowed now, the last acknowledged picture first."""
        return [self.facts, *self._allowed]

    def judge(self, seen: Mapping[str, Fact], *, power_cut: bool = False, refused: bool = False) -> None:
        """Fail unless an allowed picture is seen; then make it the current picture.

        After a refusal (`refused`) data may be lost as by a power cut, but the refusal does not make unsynced data
        synced.
        """
        verdicts = [list(differences(one, seen, power_cut or refused)) for one in self.allowed()]
        best = min(range(len(verdicts)), key=lambda number: len(verdicts[number]))
        told = self._journal.read_text().splitlines()[-12:] if self._journal.exists() else []
        assert not verdicts[best], "\n".join(["promised, and seen:", *verdicts[best], "the journal ends with:", *told])
        picture = self.allowed()[best]
        self.facts = {key: settled(picture[key], found, power_cut) for key, found in seen.items()}
        self._allowed = []
        self.is_closed = False


def changed(facts: Mapping[str, Fact], changes: Picture) -> dict[str, Fact]:
    """Return the picture after `changes`."""
    return {key: fact for key, fact in {**facts, **changes}.items() if fact is not None}


def differences(expected: Mapping[str, Fact], seen: Mapping[str, Fact], power_cut: bool) -> Iterator[str]:
    """Yield each difference between what was promised and what is seen."""
    for key in sorted({*expected, *seen}):
        if not allows(expected.get(key), seen.get(key), power_cut):
            yield f"  {key}: {told(expected.get(key))}, seen {told(seen.get(key))}"


def allows(expected: Fact | None, seen: Fact | None, power_cut: bool) -> bool:
    """Return whether what is seen agrees with the promise."""
    if isinstance(expected, Writing):
        return _holds(expected, seen, power_cut)
    if isinstance(expected, Snapshot) and isinstance(seen, Snapshot):
        files = seen.files if expected.loose and power_cut else expected.files
        return replace(expected, files=files, loose=False) == seen
    if isinstance(expected, Image) and isinstance(seen, Image):
        return seen.whole or not expected.whole
    return expected == seen


def _holds(expected: Writing, seen: Fact | None, power_cut: bool) -> bool:
    """A ref without any sync may vanish as a whole, because its directory was not synced either."""
    if not isinstance(seen, Bytes):
        return seen is None and power_cut and (expected.synced, expected.total) == (0, None)
    size, floor = len(seen.data), expected.synced if power_cut else expected.floor
    return floor <= size <= expected.top and seen.data == noise(expected.mark, size) and seen.total == expected.total


def settled(expected: Fact, seen: Fact, power_cut: bool) -> Fact:
    """Return the new promise: what is seen. After a power cut, the bytes that a write still has are synced."""
    if isinstance(expected, Writing) and isinstance(seen, Bytes):
        size = len(seen.data)
        return replace(expected, floor=size, synced=size if power_cut else min(expected.synced, size), top=size)
    if isinstance(expected, Snapshot) and isinstance(seen, Snapshot):
        return replace(seen, loose=expected.loose and not power_cut)
    return expected if isinstance(expected, Image) else seen


def told(fact: Fact | None) -> str:
    """Describe a fact in a line."""
    if isinstance(fact, Bytes):
        return f"{len(fact.data)} bytes {hashlib.sha256(fact.data).hexdigest()[:12]}, total {fact.total}"
    return "nothing" if fact is None else str(fact)
