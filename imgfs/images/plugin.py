"""The kinds of this room, and its built-in plugins: the names and the catalogue, both in the database."""

from __future__ import annotations

from imgfs.images.catalog import Catalog
from imgfs.images.names import Names
from imgfs.plugins.contract import Kind, Plugin
from imgfs.plugins.program import DATABASE

NAMES = Kind("names", Names)
CATALOG = Kind("catalog", Catalog)

LOCAL_NAMES = Plugin(NAMES, "local", lambda context: Names(context.one(DATABASE)), requires=(DATABASE,))
LOCAL_CATALOG = Plugin(CATALOG, "local", lambda context: Catalog(context.one(DATABASE)), requires=(DATABASE,))
