"""Chains in the database, users' snapshots there and on disk. Views are transfer's, which gets their layers."""

from __future__ import annotations

from imgfs.kernel.disk import sync_filesystem
from imgfs.plugins.contract import Context, Plugin
from imgfs.plugins.program import DATABASE
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.kinds import CHAINS, SNAPSHOTS
from imgfs.snapshots.store import SnapshotStore


def _snapshots(context: Context) -> SnapshotStore:
    return SnapshotStore(context.state, context.one(DATABASE), context.one(CHAINS), sync_filesystem)


LOCAL_CHAINS = Plugin(CHAINS, "local", lambda context: SnapshotGraph(context.one(DATABASE)), requires=(DATABASE,))
OVERLAY = Plugin(SNAPSHOTS, "overlay", _snapshots, requires=(DATABASE, CHAINS))
