"""Names and the catalogue, in the database."""

from __future__ import annotations

from imgfs.images.catalog import Catalog
from imgfs.images.kinds import CATALOG, NAMES
from imgfs.images.names import Names
from imgfs.plugins.contract import Plugin
from imgfs.plugins.program import DATABASE

LOCAL_NAMES = Plugin(NAMES, "local", lambda context: Names(context.one(DATABASE)), requires=(DATABASE,))
LOCAL_CATALOG = Plugin(CATALOG, "local", lambda context: Catalog(context.one(DATABASE)), requires=(DATABASE,))
