"""P12: the cost of a lookup and a listing with 10, 1,000 or 10,000 known images, blobs, snapshots and containers."""

from __future__ import annotations

import hashlib
import json
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
IMAGES, BLOBS, SNAPSHOTS, CONTAINERS = "name", "blob", "snapshot", "container"
KINDS = (IMAGES, BLOBS, SNAPSHOTS, CONTAINERS)
_PLACES = {IMAGES: "images", BLOBS: "content", SNAPSHOTS: "snapshots/active", CONTAINERS: "containers"}
_INFO = {CONTAINERS: "/state.json"}
"""The file that describes one object, if it is not the object itself. Its size is known only once it is made."""


def lookup(kind: str) -> str:
    return f"stat of one {kind}"


def listing(kind: str) -> str:
    return f"listing of all {kind}s, an entry"


def contestant(known: int) -> str:
    return f"{known:,} known"


def cost(bench: Bench) -> None:
    """Start one daemon for each number, all at once, and query them in turns."""
    say(NUMBERS)
    reader = Reader(bench.work)
    with ExitStack() as stack:
        # Rooms before daemons: closing a room ends any daemon that is still there.
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
        known_ones = (_name(kind, number * known // LOOKED_UP) for number in range(LOOKED_UP))
        names = [f"{name}{_INFO.get(kind, '')}" for name in known_ones]
        looked.samples.append(1e6 / reader.measure(place, "look", *names).rate)
        found = reader.measure(place, "list", state=COLD)
        if found.amount < known:
            raise Failed(f"{place}: {found.amount} of {known} {kind}s are listed")
        listed.samples.append(1e6 / found.rate)


def _row(bench: Bench, case: str, known: int) -> Row:
    return bench.results.row(NUMBERS, case, contestant(known), Unit.MICROSECONDS)


def _name(kind: str, number: int) -> str:
    digest = f"sha256:{hashlib.sha256(_blob(number)).hexdigest()}"
    names = {IMAGES: f"local-{number}", BLOBS: digest, SNAPSHOTS: f"key-{number}", CONTAINERS: f"container-{number}"}
    return names[kind]


def _blob(number: int) -> bytes:
    return b"blob %d" % number


class Populated(Imgfs):
    """A daemon that knows `known` names, blobs, writable snapshots and containers."""

    def __init__(self, room: Path, known: int, bench: Bench) -> None:
        super().__init__(room, bench)
        self._known = known

    def __enter__(self) -> Imgfs:
        for number in range(self._known):
            self._store_blob(number)
            self._record_container(number)
        mount = super().__enter__()
        for number in range(self._known):
            (self.mountpoint / "images" / _name(IMAGES, number)).symlink_to(_name(BLOBS, number))
            (self.mountpoint / "snapshots/active" / _name(SNAPSHOTS, number)).mkdir()
        return mount

    def _store_blob(self, number: int) -> None:
        """Put the blob where the daemon expects stored blobs."""
        digest = _name(BLOBS, number).removeprefix("sha256:")
        path = self.state / "blobs/sha256" / digest[:2] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_blob(number))

    def _record_container(self, number: int) -> None:
        """Record an ended container, as its supervisor leaves it (imgfs/execution/records/record.py)."""
        id = _name(CONTAINERS, number)
        path = self.state / "containers" / id
        path.mkdir(parents=True)
        made: dict[str, object] = {
            "id": id,
            "image": "local-0",
            "digest": _name(BLOBS, 0),
            "platform": "linux/amd64",
            "chain": _name(BLOBS, 0),
            "snapshot": _name(SNAPSHOTS, number),
            "created": "2026-01-01T00:00:00Z",
            "args": ["true"],
            "tty": False,
            "detach": True,
            "remove": False,
            "runtime": {"name": "runc", "path": "/usr/sbin/runc"},
            "stop_signal": "SIGTERM",
            "labels": {},
            "mountpoint": str(self.mountpoint),
        }
        (path / "container.json").write_text(json.dumps(made))
        (path / "status.json").write_text(json.dumps({"status": "stopped", "exit_code": 0}))
