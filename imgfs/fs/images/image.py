"""images/<digest>/: one image as a directory. Listing shows what is known; opening a file fetches it."""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.aio.gather import gather
from imgfs.encoding import indented_json
from imgfs.errors import ImgfsError
from imgfs.fs.caller import Caller
from imgfs.fs.content.blob import BlobFile
from imgfs.fs.files import DocumentFile, RenderedFile
from imgfs.fs.images.push import push_directory
from imgfs.fs.images.referrers import ReferrersDirectory
from imgfs.fs.node import Directory, FixedDirectory, Link, Listing, Node, Shown, control_number, missing
from imgfs.fs.snapshots.chain import check_merge
from imgfs.fs.subsystems import ImageSubsystems
from imgfs.fs.xattrs import as_error
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, Manifest
from imgfs.oci.platform import Platform
from imgfs.snapshots.graph import Snapshot
from imgfs.transfer.documents import PlatformImage
from imgfs.transfer.image_status import render_status


class PlatformDirectory(Directory):
    """An image for one platform: manifest.json, config.json, layers/, rootfs.

    `depth` is the number of levels to images/.
    """

    __slots__ = ("_depth", "_digest", "_platform", "_subsystems")

    def __init__(self, subsystems: ImageSubsystems, digest: Digest, platform: Platform, key: str, depth: int) -> None:
        super().__init__(key, subsystems.shown)
        self._subsystems = subsystems
        self._digest = digest
        self._platform = platform
        self._depth = depth

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name == b"rootfs":
            return self._rootfs()
        if name == b"pull":
            return PullFile(self._subsystems, self._digest, self._platform, f"{self._key()}/pull")
        if pushing := self._push(os.fsdecode(name)):
            return pushing
        if name not in (b"manifest.json", b"config.json", b"layers"):
            raise missing(name)
        image = await self._known() or await caller.wait(self._fetch)
        return (await self._parts(image))[name]

    async def entries(self, caller: Caller) -> Listing:
        image = await self._known()
        known = await self._parts(image) if image else {}
        return [*known.items(), (b"rootfs", self._rootfs())]

    async def _fetch(self) -> PlatformImage:
        return await self._subsystems.documents.platform_image(self._digest, self._platform)

    async def _known(self) -> PlatformImage | None:
        """Return the stored documents, or None. Errors of a damaged document are reported when it is opened."""
        try:
            return await self._subsystems.documents.stored_platform_image(self._digest, self._platform)
        except ImgfsError:
            return None

    async def _parts(self, image: PlatformImage) -> dict[bytes, Node]:
        blob_files = self._subsystems.blob_files
        own = await blob_files.catalog.descriptor(image.digest)
        size = info.size if (info := blob_files.content.info(image.digest)) else own.size if own else 0
        return {
            b"manifest.json": BlobFile(blob_files, Descriptor(image.digest, size, image.manifest.media_type)),
            b"config.json": BlobFile(blob_files, image.manifest.config),
            b"layers": _layers_directory(self._shown, image, f"{self._key()}/layers", self._depth + 1),
        }

    def _push(self, name: str) -> Node | None:
        return push_directory(self._shown, self._subsystems.pushes, self._digest, self._platform, name)

    def _rootfs(self) -> Node:
        target = f"{'../' * (self._depth + 1)}snapshots/{self._digest}@{self._platform.slug}/rootfs"
        return Link(f"{self._key()}/rootfs", self._subsystems.shown, target)

    def _key(self) -> str:
        return f"images/{self._digest}/{self._depth}/{self._platform.slug}"


class ImageDirectory(PlatformDirectory):
    """images/<digest>: the files of the default platform, and the files of the image as a whole."""

    __slots__ = ()

    def __init__(self, subsystems: ImageSubsystems, digest: Digest) -> None:
        super().__init__(subsystems, digest, subsystems.documents.platform, f"images/{digest}", 1)

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if found := self._own().get(name):
            return found
        if name in (b"index.json", b"platforms"):
            document = await caller.wait(lambda: self._subsystems.documents.read(self._digest))
            if found := (await self._of_index(document)).get(name):
                return found
        return await super().lookup(name, caller)

    async def entries(self, caller: Caller) -> Listing:
        try:
            document = await self._subsystems.documents.stored(self._digest)
        except ImgfsError:
            document = None
        index = await self._of_index(document) if document else {}
        return [*index.items(), *(await super().entries(caller)), *self._own().items()]

    async def change(self, fields: pyfuse3.SetattrFields, caller: Caller) -> None:
        """Refresh every name of this image (`touch` through a name)."""
        if not fields.update_mtime or fields.update_mode or fields.update_uid or fields.update_gid:
            raise self.refusal()
        for name in self._subsystems.names.of(self._digest):
            await caller.wait(lambda name=name: self._subsystems.resolver.refresh(name.name))

    async def xattrs(self) -> dict[bytes, bytes]:
        return as_error(self._subsystems.images.failure(self._digest))

    def _own(self) -> dict[bytes, Node]:
        subsystems = self._subsystems
        return {
            b"status": RenderedFile(f"{self._key()}/status", self._shown, self._status_text),
            b"status.json": RenderedFile(f"{self._key()}/status.json", self._shown, self._status_json),
            b"referrers": ReferrersDirectory(
                subsystems.blob_files, subsystems.referrers, self._digest, is_resolving=subsystems.is_resolving
            ),
        }

    async def _of_index(self, document: Manifest | ImageIndex) -> dict[bytes, Node]:
        if not isinstance(document, ImageIndex):
            return {}
        info = self._subsystems.blob_files.content.info(self._digest)
        own = Descriptor(self._digest, info.size if info else 0, document.media_type)
        return {
            b"index.json": BlobFile(self._subsystems.blob_files, own),
            b"platforms": _platforms_directory(self._subsystems, self._digest, document),
        }

    async def _status_text(self) -> bytes:
        return render_status(await self._subsystems.status.image(self._digest)).encode()

    async def _status_json(self) -> bytes:
        return indented_json(await self._subsystems.status.image(self._digest))


class PullFile(DocumentFile):
    """`pull`: opening it fetches the whole image durably.

    It contains the chain ID. Unlisted, to prevent accidental pulls.

    It is a file because open holds no lock. An xattr would keep the directory locked during the whole pull.
    """

    __slots__ = ("_digest", "_platform", "_subsystems")

    def __init__(self, subsystems: ImageSubsystems, digest: Digest, platform: Platform, key: str) -> None:
        super().__init__(control_number(key))
        self._subsystems = subsystems
        self._digest = digest
        self._platform = platform

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._subsystems.shown.entry(self.number, stat.S_IFREG | 0o444, size=len(self._digest) + 1, disk=0)

    async def content(self, caller: Caller) -> bytes:
        snapshot = await caller.wait(self._pull)
        return f"{snapshot.chain_id}\n".encode()

    async def _pull(self) -> Snapshot:
        """Pull the image. Layers that cannot be merged are reported now rather than at the first walk."""
        images = self._subsystems.images
        snapshot = await images.snapshot(self._digest, self._platform, hurried=True)
        await gather(
            [
                lambda: images.pull(self._digest, self._platform, again=True),
                lambda: check_merge(self._subsystems.chains, snapshot),
            ]
        )
        return snapshot


def _layers_directory(shown: Shown, image: PlatformImage, key: str, depth: int) -> Directory:
    """Return layers/: a link into content/ for each layer, base first, numbered from 0."""
    up = "../" * (depth + 1)
    links = {
        str(n).encode(): Link(f"{key}/{n}", shown, f"{up}content/{layer.digest}")
        for n, layer in enumerate(image.manifest.layers)
    }
    return FixedDirectory(key, shown, links)


def _platforms_directory(subsystems: ImageSubsystems, digest: Digest, index: ImageIndex) -> Directory:
    """Return platforms/: a directory for each platform of the index."""
    key = f"images/{digest}/platforms"
    platforms = {
        one.platform.slug.encode(): PlatformDirectory(subsystems, digest, one.platform, f"{key}/{one.platform.slug}", 3)
        for one in index.manifests
        if one.media_type in MANIFEST_TYPES | INDEX_TYPES and one.platform and one.platform.os != "unknown"
    }
    return FixedDirectory(key, subsystems.shown, platforms)
