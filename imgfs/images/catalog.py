"""The catalogue: what manifests and names claim about digests that may not be local.

For each digest it has the size, the media type, and the repositories that have it. Every row can be rebuilt by
resolving the names again, so losing the tables costs requests, not data.
"""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

import trio

from imgfs.database.database import Database
from imgfs.errors import ImgfsError
from imgfs.images import referrers
from imgfs.oci.descriptor import CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source

DIGITS = 5
"""Hex digits of a digest that are compared: one bit for each possible value, 128 KiB.

With 100,000 digests, one in eleven unknown digests counts as known and costs a query.
"""


class Known:
    """A set that only grows and may contain false positives: it answers "certainly unknown" without a database query.

    Every commit of an ingest looks up a digest that is usually unknown, and a query takes as long as the rest of that
    lookup. Until `is_complete` is set, every digest counts as known.
    """

    def __init__(self, beginnings: Iterable[str] = ()) -> None:
        """Start with all digests whose hex begins with one of `beginnings`. Text that is not hex is ignored."""
        self._bits = bytearray(1 << (4 * DIGITS - 3))
        self.is_complete = False
        for beginning in beginnings:
            with suppress(ValueError):
                self._add(beginning)

    def __contains__(self, digest: Digest) -> bool:
        number = int(digest.hex[:DIGITS], 16)
        return not self.is_complete or bool(self._bits[number >> 3] & 1 << (number & 7))

    def add(self, digests: Iterable[Digest]) -> None:
        """Add these digests."""
        for digest in digests:
            self._add(digest.hex[:DIGITS])

    def complete(self, others: Known) -> None:
        """Merge `others`, which holds all digests that existed before the first `add`."""
        both = int.from_bytes(self._bits) | int.from_bytes(others._bits)
        self._bits[:] = both.to_bytes(len(self._bits))
        self.is_complete = True

    def _add(self, beginning: str) -> None:
        number = int(beginning, 16)
        self._bits[number >> 3] |= 1 << (number & 7)


SCHEMA = f"""{referrers.SCHEMA}
CREATE TABLE IF NOT EXISTS descriptors (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    proven INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (
    digest TEXT NOT NULL,
    host TEXT NOT NULL,
    repository TEXT NOT NULL,
    size INTEGER,
    media_type TEXT,
    PRIMARY KEY (digest, host, repository)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS diff_ids (
    digest TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL
) WITHOUT ROWID;
"""

_SMALL_TYPES = ("", *sorted(INDEX_TYPES | MANIFEST_TYPES | CONFIG_TYPES))
_SMALL = ", ".join("?" * len(_SMALL_TYPES))
_EVERY = "SELECT digest FROM descriptors UNION SELECT digest FROM sources UNION SELECT digest FROM diff_ids"
_BEGINNING = f"substr(digest, instr(digest, ':') + 1, {DIGITS})"
_BEGINNINGS = f"SELECT {_BEGINNING} FROM descriptors UNION ALL SELECT {_BEGINNING} FROM sources"
_WORD = "SELECT size, media_type FROM descriptors"


@dataclass(frozen=True, slots=True)
class Claim:
    """What the manifests of one source say of a digest; `descriptor` is None if only a name leads there."""

    source: Source
    descriptor: Descriptor | None


@dataclass(slots=True, eq=False)
class _Proof:
    """A row that waits for the next transaction."""

    blob: Descriptor
    diff_id: Digest
    error: ImgfsError | None = None


class Catalog:
    """All knowledge about digests beyond their bytes.

    A statement of a manifest is a claim until the bytes are verified, so it is stored for the source it came from: a
    lying manifest must not affect the images of another registry.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._proofs: list[_Proof] = []
        self._proving = trio.Lock()
        self._known = Known()
        self._is_asked = False
        """Whether the query for all digests was made, once, to complete `_known`."""
        self.referrers = referrers.ReferrerStore(database)

    async def add(
        self, descriptors: Iterable[Descriptor], sources: Iterable[Source], proven: Descriptor | None = None
    ) -> None:
        """Record that each of `sources` has each of `descriptors`. Durable on return.

        `proven` describes verified bytes and overrides all claims. Foreign layers are not recorded for any source,
        because no registry has them; so a local foreign layer never counts as fetchable.
        """
        found, places = list(descriptors), list(sources)
        self._known.add(descriptor.digest for descriptor in (*found, *([proven] if proven else [])))
        await self._database.write(lambda db: insert(db, found, places, proven))

    async def add_source(self, digest: Digest, source: Source) -> None:
        """Record a source of a digest whose size is unknown."""
        self._known.add([digest])
        await self._database.write(lambda db: insert_source(db, digest, source))

    async def descriptor(self, digest: Digest) -> Descriptor | None:
        """Return the proven descriptor of `digest`, else the most frequent claim; None if no manifest mentions it."""
        if not await self._may_know(digest):
            return None
        row = await self._database.read(lambda db: _best_word(db, digest))
        return Descriptor(digest, row[0], row[1]) if row else None

    async def proven(self, digest: Digest) -> Descriptor | None:
        """Return the descriptor of `digest` if it was derived from verified bytes, else None."""
        if not await self._may_know(digest):
            return None
        row = await self._database.read(
            lambda db: db.execute(f"{_WORD} WHERE digest = ? AND proven", (digest,)).fetchone()
        )
        return Descriptor(digest, row[0], row[1]) if row else None

    async def _may_know(self, digest: Digest) -> bool:
        if not self._is_asked:
            self._is_asked = True
            with suppress(ImgfsError):  # every later lookup then queries the database, and raises its error
                self._known.complete(await self._database.read(_all_known))
        return digest in self._known

    async def claims(self, digest: Digest) -> list[Claim]:
        """Return what each source says of `digest`, sorted by source."""
        rows = await self._database.read(
            lambda db: db.execute(
                "SELECT host, repository, size, media_type FROM sources WHERE digest = ? ORDER BY host, repository",
                (digest,),
            ).fetchall()
        )
        return [
            Claim(Source(host, repository), None if size is None else Descriptor(digest, size, media_type))
            for host, repository, size, media_type in rows
        ]

    async def sources(self, digest: Digest) -> list[Source]:
        """Return the sources of `digest`, sorted."""
        return [claim.source for claim in await self.claims(digest)]

    async def prove_diff_id(self, blob: Descriptor, diff_id: Digest) -> None:
        """Record that the verified blob `blob` holds the tar `diff_id`, and that its descriptor is true.

        Calls that arrive during one transaction share the next one. Cancellation has no effect once the call has begun.
        """
        proof = _Proof(blob, diff_id)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._known.add([blob.digest])
        self._proofs.append(proof)
        with trio.CancelScope(shield=True):
            async with self._proving:
                if proof in self._proofs:
                    batch, self._proofs = self._proofs, []
                    await self._prove(batch)
        if proof.error is not None:
            raise copy.copy(proof.error)

    async def _prove(self, batch: list[_Proof]) -> None:
        def change(db: sqlite3.Connection) -> None:
            for one in batch:
                _replace(db, one.blob)
                db.execute("INSERT OR REPLACE INTO diff_ids VALUES (?, ?)", (one.blob.digest, one.diff_id))

        try:
            await self._database.write(change)
        except ImgfsError as error:
            for one in batch:
                one.error = error

    async def fetchable(self, digests: Iterable[Digest]) -> set[Digest]:
        """Return those of `digests` that some source has.

        A name alone does not count, because an import may use any name.
        """
        wanted = list(digests)

        def query(db: sqlite3.Connection) -> set[Digest]:
            known = "SELECT 1 FROM sources WHERE digest = ? AND size IS NOT NULL LIMIT 1"
            return {digest for digest in wanted if db.execute(known, (digest,)).fetchone()}

        return await self._database.read(query)

    async def fetchable_data(self) -> set[Digest]:
        """Return all fetchable digests that no source calls a manifest, an index or a config."""
        query = f"SELECT digest FROM sources GROUP BY digest HAVING sum(ifnull(media_type, '') IN ({_SMALL})) = 0"
        rows = await self._database.read(lambda db: db.execute(query, _SMALL_TYPES).fetchall())
        return {Digest(row[0]) for row in rows}

    async def fetchable_layers(self) -> set[Digest]:
        """Return the diff IDs of all layers with a fetchable blob. A name alone does not count."""
        known = "SELECT 1 FROM sources WHERE digest = diff_ids.digest AND size IS NOT NULL"
        query = f"SELECT diff_id FROM diff_ids WHERE EXISTS ({known})"
        rows = await self._database.read(lambda db: db.execute(query).fetchall())
        return {Digest(row[0]) for row in rows}

    async def digests(self) -> set[Digest]:
        """Return every digest that the catalogue mentions."""
        rows = await self._database.read(lambda db: db.execute(_EVERY).fetchall())
        return {Digest(row[0]) for row in rows}

    async def forget(self, digests: Iterable[Digest], unless: Callable[[], bool]) -> bool:
        """Delete everything about `digests` durably, unless `unless` returns True; return whether it was deleted.

        `unless` is called in a thread inside the transaction, so nothing can be added between its answer and the
        deletion.
        """
        gone = [(digest,) for digest in digests]

        def change(db: sqlite3.Connection) -> bool:
            if unless():
                return False
            for table in ("descriptors", "sources", "diff_ids"):
                db.executemany(f"DELETE FROM {table} WHERE digest = ?", gone)
            db.executemany("DELETE FROM referrers WHERE subject = ?", gone)
            return True

        return await self._database.write(change, frees=True)

    async def unpacked(self, blobs: Collection[Digest]) -> dict[Digest, Digest]:
        """Return the proven diff ID of each of `blobs` that has one."""
        asked = "SELECT diff_id FROM diff_ids WHERE digest = ?"
        rows = await self._database.read(lambda db: [db.execute(asked, (blob,)).fetchone() for blob in blobs])
        return {blob: Digest(row[0]) for blob, row in zip(blobs, rows, strict=True) if row}

    async def diff_id(self, blob: Digest) -> Digest | None:
        """Return the proven diff ID of `blob`, or None."""
        row = await self._database.read(
            lambda db: db.execute("SELECT diff_id FROM diff_ids WHERE digest = ?", (blob,)).fetchone()
        )
        return Digest(row[0]) if row else None


def insert(
    db: sqlite3.Connection, descriptors: Iterable[Descriptor], sources: Iterable[Source], proven: Descriptor | None
) -> None:
    """See Catalog.add."""
    found, places = list(descriptors), list(sources)
    if proven is not None:
        _replace(db, proven)
        found.append(proven)
    db.executemany(
        "INSERT OR IGNORE INTO descriptors VALUES (?, ?, ?, 0)", [(d.digest, d.size, d.media_type) for d in found]
    )
    db.executemany(
        "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?)",
        [(d.digest, s.host, s.repository, d.size, d.media_type) for d in found if not d.is_foreign for s in places],
    )


def insert_source(db: sqlite3.Connection, digest: Digest, source: Source) -> None:
    """See Catalog.add_source."""
    row = digest, source.host, source.repository
    db.execute("INSERT OR IGNORE INTO sources VALUES (?, ?, ?, NULL, NULL)", row)


def proven_size(db: sqlite3.Connection, digest: Digest) -> int | None:
    """Return the size of the blob by its verified bytes; None if unknown."""
    row = db.execute("SELECT size FROM descriptors WHERE digest = ? AND proven", (digest,)).fetchone()
    return row[0] if row else None


def _replace(db: sqlite3.Connection, descriptor: Descriptor) -> None:
    row = descriptor.digest, descriptor.size, descriptor.media_type
    db.execute("INSERT OR REPLACE INTO descriptors VALUES (?, ?, ?, 1)", row)


def _all_known(db: sqlite3.Connection) -> Known:
    return Known(row[0] for row in db.execute(_BEGINNINGS))


def _best_word(db: sqlite3.Connection, digest: Digest) -> tuple[int, str] | None:
    queries = (
        f"{_WORD} WHERE digest = ? AND proven",
        (
            "SELECT size, media_type FROM sources WHERE digest = ? AND size IS NOT NULL "
            "GROUP BY size, media_type ORDER BY count(*) DESC, size DESC"
        ),
        f"{_WORD} WHERE digest = ?",
    )
    for query in queries:
        if row := db.execute(query, (digest,)).fetchone():
            return row
    return None
