"""snapshots/: committed snapshots by chain ID, and the unlisted links that lead from an image to its own."""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.errors import ImgfsError, Invalid
from imgfs.fs.caller import Caller
from imgfs.fs.node import SOON, Directory, Link, Listing, Node, Shown, control_number, missing
from imgfs.fs.subsystems import Subsystems
from imgfs.fs.view import view_node
from imgfs.oci.digest import Digest, is_digest
from imgfs.oci.platform import Platform, parse_platform
from imgfs.snapshots.graph import Snapshot
from imgfs.snapshots.views import View


class SnapshotsDirectory(Directory):
    """Lists the snapshots whose layers are all here, so that walking what is listed needs no registry."""

    __slots__ = ("_subsystems",)

    def __init__(self, subsystems: Subsystems) -> None:
        super().__init__("snapshots", subsystems.shown)
        self._subsystems = subsystems

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        text = os.fsdecode(name)
        digest, at, slug = text.partition("@")
        if not is_digest(digest):
            raise missing(name)
        if at:
            return await self._of_image(name, Digest(digest), slug)
        snapshot = self._subsystems.graph.find(Digest(digest))
        if snapshot is None:
            raise missing(name)
        return SnapshotDirectory(self._subsystems, snapshot)

    async def entries(self, caller: Caller) -> Listing:
        return [
            (snapshot.chain_id.encode(), SnapshotDirectory(self._subsystems, snapshot))
            for snapshot in self._subsystems.graph
            if self._is_local(snapshot)
        ]

    def _is_local(self, snapshot: Snapshot) -> bool:
        return all(layer.diff_id in self._subsystems.layers for layer in self._subsystems.graph.layers(snapshot))

    async def _of_image(self, name: bytes, digest: Digest, slug: str) -> Node:
        try:
            platform = parse_platform(slug)
        except Invalid:
            raise missing(name) from None
        if not await self._subsystems.resolver.is_known(digest):
            raise missing(name)
        return ImageLink(self._subsystems, digest, platform)


class ImageLink(Node):
    """`<image digest>@<platform>` -> chain ID. Reading it brings the rootfs here: this is the last link on the way.

    readlink holds no lock of a directory, so others walk on while one image comes in.
    """

    __slots__ = ("_digest", "_platform", "_subsystems")

    def __init__(self, subsystems: Subsystems, digest: Digest, platform: Platform) -> None:
        super().__init__(control_number(f"snapshots/{digest}@{platform.slug}"))
        self._subsystems = subsystems
        self._digest = digest
        self._platform = platform

    async def attributes(self) -> pyfuse3.EntryAttributes:
        shown: Shown = self._subsystems.shown
        return shown.entry(self.number, stat.S_IFLNK | 0o777, size=len(self._digest), disk=0, keep=SOON)

    async def readlink(self, caller: Caller) -> bytes:
        images = self._subsystems.images
        snapshot = images.local_snapshot(self._digest, self._platform) or await caller.wait(
            lambda: images.snapshot(self._digest, self._platform)
        )
        return snapshot.chain_id.encode()


class SnapshotDirectory(Directory):
    """snapshots/<chain ID>: rootfs/, and parent where there is one."""

    __slots__ = ("_snapshot", "_subsystems")

    def __init__(self, subsystems: Subsystems, snapshot: Snapshot) -> None:
        super().__init__(f"snapshots/{snapshot.chain_id}", subsystems.shown)
        self._subsystems = subsystems
        self._snapshot = snapshot

    async def attributes(self) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFDIR | 0o555
        return self._subsystems.shown.entry(self.number, mode, time=self._snapshot.created, keep=SOON)

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name == b"rootfs":
            return await self._rootfs(caller)
        if name == b"parent" and self._snapshot.parent is not None:
            return self._parent(self._snapshot.parent)
        raise missing(name)

    async def entries(self, caller: Caller) -> Listing:
        listing: list[tuple[bytes, Node]] = [(b"rootfs", await self._rootfs(caller))]
        if self._snapshot.parent is not None:
            listing.append((b"parent", self._parent(self._snapshot.parent)))
        return listing

    async def xattrs(self) -> dict[bytes, bytes]:
        error = self._subsystems.failures.get(f"snapshots/{self._snapshot.chain_id}")
        return {b"user.imgfs.error": error.encode()} if error else {}

    async def _rootfs(self, caller: Caller) -> Node:
        views = self._subsystems.views
        view = views.kept(self._snapshot.number) or await caller.wait(self._make_view)
        return view_node(view, view.tree.root, self._subsystems.owner)

    async def _make_view(self) -> View:
        subject, failures = f"snapshots/{self._snapshot.chain_id}", self._subsystems.failures
        try:
            view = await self._subsystems.views.get(self._snapshot)
        except ImgfsError as error:
            failures.note(subject, error)
            raise
        failures.clear(subject)
        return view

    def _parent(self, parent: Digest) -> Node:
        key = f"snapshots/{self._snapshot.chain_id}/parent"
        return Link(key, self._subsystems.shown, f"../{parent}", self._snapshot.created)
