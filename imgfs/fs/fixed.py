"""A directory with a fixed set of children."""

from __future__ import annotations

from collections.abc import Mapping

from imgfs.fs.caller import Caller
from imgfs.fs.node import Directory, Listing, Node, Shown, missing


class FixedDirectory(Directory):
    """Lists `children` in their order. A subclass may have other children that are found by name only."""

    __slots__ = ("_children",)

    def __init__(self, key: str, shown: Shown, children: Mapping[bytes, Node]) -> None:
        super().__init__(key, shown)
        self._children = children

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name not in self._children:
            raise missing(name)
        return self._children[name]

    async def entries(self, caller: Caller) -> Listing:
        return list(self._children.items())
