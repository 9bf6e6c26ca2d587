"""The tables of all rooms in the database, as one value."""

from __future__ import annotations

from imgfs.content import labels
from imgfs.images import catalog, names
from imgfs.leases import clock, store
from imgfs.registry.push import sessions
from imgfs.rescue.rebuild import Tables
from imgfs.rescue.relearn import relearn
from imgfs.snapshots import graph, notes, rows

TABLES = Tables(
    schemas=(
        names.SCHEMA,
        catalog.SCHEMA,
        graph.SCHEMA,
        rows.SCHEMA,
        labels.SCHEMA,
        store.SCHEMA,
        clock.SCHEMA,
        sessions.SCHEMA,
    ),
    kept=(names.KEPT, labels.KEPT, *rows.KEPT, graph.KEPT, *store.KEPT),
    finders=(notes.adopt, relearn),
)
"""The schemas, the tables that files cannot rebuild, and the functions that rebuild the others."""
