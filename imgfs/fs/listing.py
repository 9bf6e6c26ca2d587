"""Unlisted files that ask a registry for what it has, when they are opened: a name a line.

`images/<host>/<repository>/_tags` and `images/<host>/_catalog`. No repository can be called so: names of their parts do
not begin with an underscore.
"""

from __future__ import annotations

from imgfs.fs.node import Node
from imgfs.fs.report import ReportFile
from imgfs.fs.subsystems import Subsystems

TAGS = "_tags"
CATALOG = "_catalog"


def list_file(subsystems: Subsystems, prefix: str, name: str) -> Node | None:
    """The file `name` of the directory `images/<prefix>`, if that is one of these."""
    host, _, repository = prefix.partition("/")
    key, listings = f"images/{prefix}/{name}", subsystems.listings
    if name == CATALOG and host and not repository:
        return ReportFile(subsystems, key, lambda: listings.repositories(host))
    if name == TAGS and repository:
        return ReportFile(subsystems, key, lambda: listings.tags(host, repository))
    return None
