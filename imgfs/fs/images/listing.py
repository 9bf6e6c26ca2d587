"""Unlisted files that ask a registry for what it has, when they are opened: a name a line.

`images/<host>/<repository>/_tags` and `images/<host>/_catalog`. No repository can be called so: names of their parts do
not begin with an underscore.
"""

from __future__ import annotations

from imgfs.fs.node import Node, Shown
from imgfs.fs.report import ReportFile
from imgfs.transfer.listings import Listings

TAGS = "_tags"
CATALOG = "_catalog"


def list_file(shown: Shown, listings: Listings, prefix: str, name: str) -> Node | None:
    """The file `name` of the directory `images/<prefix>`, if that is one of these."""
    host, _, repository = prefix.partition("/")
    key = f"images/{prefix}/{name}"
    if name == CATALOG and host and not repository:
        return ReportFile(key, shown, lambda: listings.repositories(host))
    if name == TAGS and repository:
        return ReportFile(key, shown, lambda: listings.tags(host, repository))
    return None
