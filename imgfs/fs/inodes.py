"""The inodes outside views that the kernel references, with one node for each number."""

from __future__ import annotations

from imgfs.errors import NotFound
from imgfs.fs.node import Node


class Inodes:
    """Lookup counts (`nlookup` in FUSE).

    Inodes of views need none: their numbers lead to their nodes (snapshots/view.py).
    """

    def __init__(self, root: Node) -> None:
        self._nodes = {root.number: root}
        self._counts = {root.number: 1}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, number: int) -> Node:
        """Return the node of an inode number. Raises NotFound if the kernel has forgotten it."""
        try:
            return self._nodes[number]
        except KeyError:
            raise NotFound(f"inode {number}: was forgotten") from None

    def count(self, node: Node) -> None:
        """Count one more lookup of `node`. The latest node object of a number answers requests."""
        self._nodes[node.number] = node
        self._counts[node.number] = self._counts.get(node.number, 0) + 1

    def forget(self, number: int, times: int) -> None:
        """Subtract `times` lookups."""
        left = self._counts.get(number, 0) - times
        if left > 0:
            self._counts[number] = left
        elif number in self._counts:
            del self._counts[number], self._nodes[number]
