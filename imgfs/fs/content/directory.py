"""content/: one read-only file for each stored blob. Unlisted: blobs that a known image mentions."""

from __future__ import annotations

import os

from imgfs.content.store import BlobInfo
from imgfs.fs.caller import Caller
from imgfs.fs.content.blob import BlobFile
from imgfs.fs.content.ingest import IngestDirectory
from imgfs.fs.node import Directory, Listing, Node, missing
from imgfs.fs.subsystems import BlobSubsystems, IngestSubsystems
from imgfs.fs.xattrs import LABEL, parse_labelling
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest, is_digest


class ContentDirectory(Directory):
    """Lists stored blobs. A lookup sends no request; only opening a file does (fs/content/blob.py)."""

    __slots__ = ("_ingest", "_sound", "_subsystems")

    def __init__(self, subsystems: BlobSubsystems, ingests: IngestSubsystems) -> None:
        super().__init__("content", subsystems.shown)
        self._subsystems = subsystems
        self._ingest = IngestDirectory(ingests)
        self._sound: dict[Digest, BlobInfo] = {}
        """Stored blobs whose size has been checked, so that another lookup costs no query."""

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        text = os.fsdecode(name)
        if name == b"ingest":
            return self._ingest
        if not is_digest(text):
            raise missing(name)
        descriptor = await self._describe(Digest(text))
        if descriptor is None:
            raise missing(name)
        return BlobFile(self._subsystems, descriptor)

    async def entries(self, caller: Caller) -> Listing:
        stored = sorted(self._subsystems.content, key=lambda info: info.digest)
        blobs = [
            (info.digest.encode(), BlobFile(self._subsystems, Descriptor(info.digest, info.size, "")))
            for info in stored
        ]
        return [(b"ingest", self._ingest), *blobs]

    async def unlink(self, name: bytes, caller: Caller) -> None:
        """Delete the blob now, even if an image refers to it. Open handles keep reading."""
        text = os.fsdecode(name)
        if not is_digest(text):
            raise missing(name)
        digest = Digest(text)
        cancelled = self._subsystems.blobs.cancel(digest)
        if not cancelled or digest in self._subsystems.content:
            await self._subsystems.content.delete(digest)

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Label a blob, for callers that may not write to the blob itself."""
        if name != LABEL:
            raise self.refusal()
        change = parse_labelling(value)
        await change.apply(await self.lookup(self.canonical(os.fsencode(change.id)), caller), caller)

    async def _describe(self, digest: Digest) -> Descriptor | None:
        info = self._subsystems.content.info(digest)
        if info is None:
            return await self._subsystems.catalog.descriptor(digest)
        if self._sound.get(digest) is not info:
            proven = await self._subsystems.catalog.proven(digest)
            if proven and info.size != proven.size:
                self._subsystems.content.set_aside(digest)
                return proven
            self._sound[digest] = info
        return Descriptor(digest, info.size, "")
