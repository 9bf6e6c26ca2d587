"""What plugins of this room are."""

from __future__ import annotations

from imgfs.images.catalog import Catalog
from imgfs.images.names import Names
from imgfs.plugins.contract import Kind

NAMES = Kind("names", Names)
CATALOG = Kind("catalog", Catalog)
