"""Unlisted files that list a registry's tags and repositories, one name per line. Opening a file sends the request.

`images/<host>/<repository>/_tags` and `images/<host>/_catalog`. No part of a repository's name begins with an
underscore, so the names do not collide.
"""

from __future__ import annotations

from imgfs.fs.node import Node, Shown
from imgfs.fs.report import ReportFile
from imgfs.transfer.listings import Listings

TAGS = "_tags"
CATALOG = "_catalog"


def list_file(shown: Shown, listings: Listings, prefix: str, name: str) -> Node | None:
    """Return the file `name` of the directory `images/<prefix>`, or None if it is not a list."""
    host, _, repository = prefix.partition("/")
    key = f"images/{prefix}/{name}"
    if name == CATALOG and host and not repository:
        return ReportFile(key, shown, lambda: listings.repositories(host))
    if name == TAGS and repository:
        return ReportFile(key, shown, lambda: listings.tags(host, repository))
    return None
