"""P12: what a look-up and a listing cost when 10, 1,000 or 10,000 images, blobs and snapshots are known."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

from .bench import Bench, recorded, say
from .contestants import Imgfs
from .processes import Failed
from .reading import COLD, Reader
from .results import Row, Unit

NUMBERS = "P12"
KNOWN = (10, 1_000, 10_000)
LOOKED_UP = 10
IMAGES, BLOBS, SNAPSHOTS = "name", "blob", "snapshot"
KINDS = (IMAGES, BLOBS, SNAPSHOTS)
_PLACES = {IMAGES: "images", BLOBS: "content", SNAPSHOTS: "snapshots/active"}


def lookup(kind: str) -> str:
    return f"stat of one {kind}"


def listing(kind: str) -> str:
    return f"listing of all {kind}s, an entry"


def contestant(known: int) -> str:
    return f"{known:,} known"


def cost(bench: Bench) -> None:
    """One daemon for each number, all at once; they are asked in turns."""
    say(NUMBERS)
    reader = Reader(bench.work)
    with ExitStack() as stack:
        # Rooms before daemons: closing a room ends whatever daemon is still there.
        rooms = {known: stack.enter_context(bench.rooms.room()) for known in KNOWN}
        mounts = {known: stack.enter_context(Populated(room, known, bench)) for known, room in rooms.items()}
        for number in range(bench.repeats):
            turn = number % len(KNOWN)
            for known in (*KNOWN[turn:], *KNOWN[:turn]):
                for kind in KINDS:
                    _ask(bench, reader, mounts[known], known, kind)


def _ask(bench: Bench, reader: Reader, mount: Imgfs, known: int, kind: str) -> None:
    looked, listed = (_row(bench, case, known) for case in (lookup(kind), listing(kind)))
    place = mount.mountpoint / _PLACES[kind]
    with recorded(looked, listed):
        names = [_name(kind, number * known // LOOKED_UP) for number in range(LOOKED_UP)]
        looked.samples.append(1e6 / reader.measure(place, "look", *names).rate)
        found = reader.measure(place, "list", state=COLD)
        if found.amount < known:
            raise Failed(f"{place}: {found.amount} of {known} {kind}s are listed")
        listed.samples.append(1e6 / found.rate)


def _row(bench: Bench, case: str, known: int) -> Row:
    return bench.results.row(NUMBERS, case, contestant(known), Unit.MICROSECONDS)


def _name(kind: str, number: int) -> str:
    digest = f"sha256:{hashlib.sha256(_blob(number)).hexdigest()}"
    return {IMAGES: f"local-{number}", BLOBS: digest, SNAPSHOTS: f"key-{number}"}[kind]


def _blob(number: int) -> bytes:
    return b"blob %d" % number


class Populated(Imgfs):
    """A daemon that knows `known` names, blobs and writable snapshots."""

    def __init__(self, room: Path, known: int, bench: Bench) -> None:
        super().__init__(room, bench)
        self._known = known

    def __enter__(self) -> Imgfs:
        for number in range(self._known):
            self._store_blob(number)
        mount = super().__enter__()
        for number in range(self._known):
            (self.mountpoint / "images" / _name(IMAGES, number)).symlink_to(_name(BLOBS, number))
            (self.mountpoint / "snapshots/active" / _name(SNAPSHOTS, number)).mkdir()
        return mount

    def _store_blob(self, number: int) -> None:
        """Put it where the daemon finds what it has stored."""
        digest = _name(BLOBS, number).removeprefix("sha256:")
        path = self.state / "blobs/sha256" / digest[:2] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_blob(number))
