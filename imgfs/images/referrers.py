"""The referrers of images, as registries list them: SBOMs, signatures, indexes. Claims until the bytes are verified.

The rows can be rebuilt by asking the registries again. They are deleted when their image is forgotten (Catalog.forget).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from imgfs.database.database import Database
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source

SCHEMA = """
CREATE TABLE IF NOT EXISTS referrers (
    subject TEXT NOT NULL,
    digest TEXT NOT NULL,
    host TEXT NOT NULL,
    repository TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    artifact_type TEXT NOT NULL,
    annotations TEXT NOT NULL,
    PRIMARY KEY (subject, digest, host, repository)
) WITHOUT ROWID;
"""
_INSERT = "INSERT OR REPLACE INTO referrers VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to `subject`. Its values come from the first of `sources`, which are sorted by name."""

    subject: Digest
    descriptor: Descriptor
    sources: tuple[Source, ...]


class ReferrerStore:
    """The known referrers of all images."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, subject: Digest) -> list[Referrer]:
        """Return the known referrers of `subject`, sorted by digest."""
        rows = await self._database.read(
            lambda db: db.execute(
                "SELECT digest, host, repository, size, media_type, artifact_type, annotations FROM referrers "
                "WHERE subject = ? ORDER BY digest, host, repository",
                (subject,),
            ).fetchall()
        )
        found: dict[Digest, Referrer] = {}
        for digest, host, repository, size, media_type, artifact_type, said in rows:
            notes = msgspec.json.decode(said, type=dict[str, str])
            told = Descriptor(Digest(digest), size, media_type, notes, artifact_type=artifact_type)
            one = found.setdefault(told.digest, Referrer(subject, told, ()))
            found[told.digest] = Referrer(subject, one.descriptor, (*one.sources, Source(host, repository)))
        return list(found.values())

    async def of_any(self, subjects: Iterable[Digest]) -> set[Digest]:
        """Return the digests of all known referrers of any of `subjects`."""
        wanted = list(subjects)
        query = "SELECT digest FROM referrers WHERE subject = ?"
        rows = await self._database.read(lambda db: [row for one in wanted for row in db.execute(query, (one,))])
        return {Digest(row[0]) for row in rows}

    async def replace(
        self, subject: Digest, source: Source, found: Iterable[Descriptor], artifact_type: str = ""
    ) -> None:
        """Replace what `source` claims: `found` are all referrers of `subject` (of `artifact_type`, if given).

        Durable.
        """
        rows = [_row(subject, source, one) for one in found]
        place = subject, source.host, source.repository

        def change(db: sqlite3.Connection) -> None:
            where = "subject = ? AND host = ? AND repository = ? AND (? IN ('', artifact_type))"
            db.execute(f"DELETE FROM referrers WHERE {where}", (*place, artifact_type))
            db.executemany(_INSERT, rows)

        await self._database.write(change)

    async def add(self, subject: Digest, source: Source, referrer: Descriptor) -> None:
        """Record that `source` has this referrer of `subject`, and keep all other records. Durable on return."""
        row = _row(subject, source, referrer)
        await self._database.write(lambda db: db.execute(_INSERT, row))


def _row(subject: Digest, source: Source, one: Descriptor) -> tuple[str | int, ...]:
    annotations = msgspec.json.encode(one.annotations).decode()
    about = one.size, one.media_type, one.artifact_type, annotations
    return subject, one.digest, source.host, source.repository, *about
