"""State directories that old releases made, stored as `releases/<format>[-<moment>].tar.xz`.

Each was made by the code of its time through a real mount: an image was pulled and got a second name; where the release
had them, a committed snapshot, an active one on top of it, labels and a lease. `expected.json` says what must be found.

- `0-first`: the first tables: no snapshots of users, no `proven` in `descriptors`, no `size` in `sources`
- `0-snapshots`: `snapshot_labels` calls its subject `snapshot`; there is no copy of the rows yet
- `0-copied`: the last tables before the database had a format, with a copy of the rows
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
    """A state directory of an old release, and what its release was told."""

    state: Path
    names: dict[str, str]
    chain: str
    has_snapshots: bool

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """The rows that no file can rebuild, by table, without times; the database must have the current format."""
        with closing(sqlite3.connect(self.state / "imgfs.db")) as db:
            return {one.name: [_timeless(one.name, row) for row in one.dump(db)] for one in TABLES.kept}

    def expected(self) -> dict[str, list[tuple[Any, ...]]]:
        """What `rows` returns after every upgrade."""
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
    """The state directory of `release`, laid out as `directory`/state."""
    state = directory / "state"
    with tarfile.open(_STORED / f"{release}.tar.xz") as stored:
        stored.extractall(state, filter="fully_trusted")
    expected = json.loads((state / "expected.json").read_bytes())
    (state / "expected.json").unlink()
    return Released(state, expected["names"], expected["chain"], expected.get("snapshots", False))
