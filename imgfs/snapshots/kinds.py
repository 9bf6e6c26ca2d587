"""What plugins of this room are."""

from __future__ import annotations

from imgfs.plugins.contract import Kind
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views

CHAINS = Kind("chains", SnapshotGraph)
SNAPSHOTS = Kind("snapshots", SnapshotStore)
VIEWS = Kind("views", Views)
