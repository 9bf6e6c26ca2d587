"""snapshots/: image chains by chain ID, users' committed snapshots and views, and the links from images to chains."""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.errors import Invalid, NotPermitted
from imgfs.filename import without_colons
from imgfs.fs.caller import Caller
from imgfs.fs.node import SOON, Directory, Link, Listing, Node, control_number, missing
from imgfs.fs.snapshots.active import ActiveDirectory
from imgfs.fs.snapshots.chain import ChainDirectory, show, show_there
from imgfs.fs.snapshots.user import UserSnapshot, id_of_target, remove
from imgfs.fs.subsystems import ChainSubsystems, UserSubsystems
from imgfs.fs.xattrs import LABEL, parse_labelling
from imgfs.oci.digest import Digest, is_digest
from imgfs.oci.platform import Platform, parse_platform
from imgfs.snapshots.graph import Snapshot
from imgfs.snapshots.ids import ACTIVE
from imgfs.snapshots.rows import Info, SnapshotKind
from imgfs.transfer.resolver import Resolver


class SnapshotsDirectory(Directory):
    """Lists users' snapshots, and the chains whose layers are all stored, so that a walk needs no registry."""

    __slots__ = ("_active", "_chains", "_resolver", "_users")

    def __init__(self, chains: ChainSubsystems, users: UserSubsystems, resolver: Resolver) -> None:
        super().__init__("snapshots", users.shown)
        self._chains = chains
        self._users = users
        self._resolver = resolver
        self._active = ActiveDirectory(users)

    def has_literally(self, name: str) -> bool:
        return self._users.snapshots.find_own(name) is not None

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        text = os.fsdecode(name)
        if text == ACTIVE:
            return self._active
        if info := self._users.snapshots.find_own(text):
            return self._own(info)
        digest, at, slug = text.partition("@")
        if not is_digest(digest):
            raise missing(name)
        if at:
            return await self._of_image(name, Digest(digest), slug)
        snapshot = self._chains.graph.find(Digest(digest))
        if snapshot is None:
            raise missing(name)
        return ChainDirectory(self._chains, snapshot)

    async def entries(self, caller: Caller) -> Listing:
        chains: Listing = [
            (snapshot.chain_id.encode(), ChainDirectory(self._chains, snapshot))
            for snapshot in self._chains.graph
            if self._is_local(snapshot)
        ]
        own = [info for info in self._users.snapshots if info.kind is not SnapshotKind.ACTIVE]
        return [(b"active", self._active), *chains, *((os.fsencode(info.name), self._own(info)) for info in own)]

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        """Create a view: another name for a committed snapshot, which pins it."""
        info = await self._users.snapshots.view(os.fsdecode(name), id_of_target(self._users, os.fsdecode(target)))
        return self._own(info)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        text = os.fsdecode(name)
        _check_users(text)
        if self._users.snapshots.stat(text).kind is not SnapshotKind.VIEW:
            raise NotPermitted(f"snapshot {text}: is not a view; remove it with rmdir")
        await self._users.snapshots.remove(text)

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        text = os.fsdecode(self.canonical(name))
        _check_users(text)
        await remove(self._users, text, caller, walked=os.fsdecode(name))

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        """Rename a view, also over another view (`ln -sfn`). Committed snapshots keep their names."""
        if target is not self and not isinstance(target, SnapshotsDirectory):
            raise NotPermitted("a snapshot can only be moved within snapshots/")
        old = self.canonical(old)
        _check_users(os.fsdecode(old))
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise NotPermitted("snapshots cannot be exchanged")
        await self._users.snapshots.rename_view(os.fsdecode(old), os.fsdecode(new))

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Label a snapshot, for callers that may not write to its directory."""
        if name != LABEL:
            raise self.refusal()
        change = parse_labelling(value)
        directory, _, key = change.id.rpartition("/")
        above = self._active if directory == ACTIVE else self
        name = above.canonical(os.fsencode(key))
        with self._users.failures.noting(f"snapshots/{change.id.removesuffix(key)}{os.fsdecode(name)}"):
            await change.apply(await above.lookup(name, caller), caller)

    def _own(self, info: Info) -> Node:
        if info.kind is SnapshotKind.VIEW:
            return Link(f"snapshot/{info.number}", self._shown, info.parent or "", info.created)
        return UserSnapshot(self._users, info)

    def _is_local(self, snapshot: Snapshot) -> bool:
        return all(layer.diff_id in self._chains.layers for layer in self._chains.graph.layers(snapshot))

    async def _of_image(self, name: bytes, digest: Digest, slug: str) -> Node:
        try:
            platform = parse_platform(slug)
        except Invalid:
            raise missing(name) from None
        if not await self._resolver.is_known(digest):
            raise missing(name)
        return ImageLink(self._chains, digest, platform)


def _check_users(name: str) -> None:
    """Raise NotPermitted for an entry that is not a user's snapshot."""
    if name == ACTIVE or (is_digest(name.partition("@")[0]) and "@" in name):
        raise NotPermitted(f"snapshots/{name}: belongs to imgfs and cannot be changed")


class ImageLink(Node):
    """`<image digest>@<platform>` -> chain ID, the last link on a walk to an image's rootfs.

    Reading it fetches the image.

    readlink holds no directory lock, so other callers walk on while the image is fetched and its view is mounted.
    """

    __slots__ = ("_digest", "_platform", "_subsystems")

    def __init__(self, subsystems: ChainSubsystems, digest: Digest, platform: Platform) -> None:
        super().__init__(control_number(f"snapshots/{digest}@{platform.slug}"))
        self._subsystems = subsystems
        self._digest = digest
        self._platform = platform

    def by_colon_free_name(self) -> Node:
        return ColonFreeImageLink(self._subsystems, self._digest, self._platform)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        shown = self._subsystems.shown
        return shown.entry(self.number, stat.S_IFLNK | 0o777, size=len(self._digest), disk=0, keep=SOON)

    async def readlink(self, caller: Caller) -> bytes:
        images, rootfs = self._subsystems.images, self._subsystems.rootfs
        snapshot = images.local_snapshot(self._digest, self._platform)
        if snapshot is None:
            snapshot = await caller.wait(self._bring)
        elif not rootfs.chains.is_shown(snapshot):
            await caller.wait(lambda: show(self._subsystems, snapshot))
        await show_there(self._subsystems, snapshot, caller)
        return snapshot.chain_id.encode()

    async def _bring(self) -> Snapshot:
        images, rootfs = self._subsystems.images, self._subsystems.rootfs
        known = await images.known_snapshot(self._digest, self._platform)
        if known is not None and await rootfs.chains.is_lazy(known):
            await show(self._subsystems, known)
            return known
        snapshot = await images.snapshot(self._digest, self._platform)
        if rootfs.chains.is_small(snapshot):
            await show(self._subsystems, snapshot)
        else:
            rootfs.chains.prepare(snapshot)
        return snapshot


class ColonFreeImageLink(ImageLink):
    """The same link by its colon-free spelling. Its target is colon-free too, so that realpath(3) has no colon.

    The kernel caches the target of a link with its inode, so another target needs another inode.
    """

    __slots__ = ()

    def __init__(self, subsystems: ChainSubsystems, digest: Digest, platform: Platform) -> None:
        super().__init__(subsystems, digest, platform)
        self.number = control_number(f"snapshots/{without_colons(digest)}@{platform.slug}")

    async def readlink(self, caller: Caller) -> bytes:
        return without_colons((await super().readlink(caller)).decode()).encode()
