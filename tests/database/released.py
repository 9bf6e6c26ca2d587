"""State directories that old releases made, stored as `releases/<format>[-<moment>].tar.xz`.

The code of each release made its state directory through a real mount: it pulled an image and gave it a second name. If
the release supported them, it also made a committed snapshot, an active snapshot on top of it, labels and a lease.
`expected.json` describes the content that must be found.

- `0-first`: the first tables: no user snapshots, no `proven` in `descriptors`, no `size` in `sources`
- `0-snapshots`: the subject column of `snapshot_labels` is `snapshot`; there is no copy of the rows yet
- `0-copied`: the last tables before the database had a format number, with a copy of the rows
- `1`: format 1
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgfs.assembly.tables import TABLES

_STORED = Path(__file__).parent / "releases"
RELEASES = sorted(path.name.removesuffix(".tar.xz") for path in _STORED.iterdir())
LEASE_ENDS = 7229217600 * 10**9


@dataclass(frozen=True)
class Released:
    """A state directory of an old release, and the content that the release stored in it."""

    state: Path
    names: dict[str, str]
    chain: str
    has_snapshots: bool

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the kept rows by table, without times. The database must have the current format."""
        with closing(sqlite3.connect(self.state / "imgfs.db")) as db:
            return {one.name: [_timeless(one.name, row) for row in one.dump(db)] for one in TABLES.kept}

    def expected(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the rows that `rows` must return after an upgrade."""
        found: dict[str, list[tuple[Any, ...]]] = {one.name: [] for one in TABLES.kept}
        found["names"] = sorted(self.names.items())
        if self.has_snapshots:
            digest = self.names["mine"]
            found["user_snapshots"] = [
                (1, "committed", b"kept", self.chain.encode()),
                (2, "active", b"work", b"kept"),
            ]
            found["snapshots"] = [(self.chain, "", self.chain)]
            found["snapshot_labels"] = [("2", "why", b"a test")]
            found["content_labels"] = [(digest, "who", b"\xffsomebody")]
            found["leases"] = [(b"mine", LEASE_ENDS)]
            found["lease_links"] = [(b"mine", b"image", f"content/{digest}".encode())]
        return found


def _timeless(table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    match table:
        case "names":
            return row[:2]
        case "user_snapshots":
            return row[:4]
        case "snapshots":
            return row[:3]
        case "leases":
            return row[0], row[2]
        case _:
            return row


def unpack(release: str, directory: Path) -> Released:
    """Unpack the state directory of `release` to `directory`/state."""
    state = directory / "state"
    with tarfile.open(_STORED / f"{release}.tar.xz") as stored:
        stored.extractall(state, filter="fully_trusted")
    expected = json.loads((state / "expected.json").read_bytes())
    (state / "expected.json").unlink()
    return Released(state, expected["names"], expected["chain"], expected.get("snapshots", False))
