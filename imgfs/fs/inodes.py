"""Which inodes outside of views the kernel counts: one node a number, for as long as the kernel may ask for it."""

from __future__ import annotations

from imgfs.errors import NotFound
from imgfs.fs.node import Node


class Inodes:
    """Lookup counts (FUSE's `nlookup`). Views need none: their numbers lead back to their nodes (snapshots/view.py)."""

    def __init__(self, root: Node) -> None:
        self._nodes = {root.number: root}
        self._counts = {root.number: 1}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, number: int) -> Node:
        """The node the kernel means; raises NotFound for one it has forgotten."""
        try:
            return self._nodes[number]
        except KeyError:
            raise NotFound(f"inode {number}: was forgotten") from None

    def count(self, node: Node) -> None:
        """The kernel was told of `node` once more. The latest node object of a number is the one that answers."""
        self._nodes[node.number] = node
        self._counts[node.number] = self._counts.get(node.number, 0) + 1

    def forget(self, number: int, times: int) -> None:
        """The kernel gives back `times` of its counts."""
        left = self._counts.get(number, 0) - times
        if left > 0:
            self._counts[number] = left
        elif number in self._counts:
            del self._counts[number], self._nodes[number]
