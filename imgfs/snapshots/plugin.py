"""The kinds of plugins of this room, and its plugins: chains and users' snapshots. The views are in transfer/."""

from __future__ import annotations

from imgfs.kernel.disk import sync_filesystem
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.plugins.program import DATABASE
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views

CHAINS = Kind("chains", SnapshotGraph)
SNAPSHOTS = Kind("snapshots", SnapshotStore)
VIEWS = Kind("views", Views)


def _snapshots(context: Context) -> SnapshotStore:
    return SnapshotStore(context.state, context.one(DATABASE), context.one(CHAINS), sync_filesystem)


LOCAL_CHAINS = Plugin(CHAINS, "local", lambda context: SnapshotGraph(context.one(DATABASE)), requires=(DATABASE,))
OVERLAY = Plugin(SNAPSHOTS, "overlay", _snapshots, requires=(DATABASE, CHAINS))
