"""The stores on this machine that several classes of transfer/ share.

This module owns only the value that passes the stores together to a constructor. Each store belongs to its own room.
"""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.failures import Failures
from imgfs.images.catalog import Catalog
from imgfs.layers.store import LayerStore
from imgfs.leases.pins import Pins


@dataclass(frozen=True, slots=True)
class LocalState:
    """The blobs and layers that one daemon stores, its records of them, and the pins that protect them from removal."""

    content: ContentStore
    ingests: IngestStore
    layers: LayerStore
    catalog: Catalog
    failures: Failures
    pins: Pins
