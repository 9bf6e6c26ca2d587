"""images/<digest>/referrers/: the known referrers of an image. Listing the directory sends no request.

`<digest>.json` is the referrer's manifest or index, fetched when it is opened. A lookup of one that is not listed asks
the image's registries for it, unless the option `resolve` is `registered`. `refresh`, unlisted, asks the registries
when it is opened and answers with the digests; `refresh:<artifact type>` asks for those of one type, `/` as `%2F`.
"""

from __future__ import annotations

import os
from urllib.parse import unquote

import msgspec

from imgfs.fs.caller import Caller
from imgfs.fs.content.blob import BlobFile
from imgfs.fs.files import WRITING, ReportFile
from imgfs.fs.node import Directory, Handle, Listing, Node, control_number, missing
from imgfs.fs.subsystems import BlobSubsystems
from imgfs.fs.xattrs import as_error
from imgfs.images.referrers import Referrer
from imgfs.oci.digest import Digest, is_digest
from imgfs.transfer.referrers import ReferrerFetcher, place_of

_SUFFIX = ".json"
_ANNOTATIONS_MAX = 60 << 10
"""Largest xattr of annotations in bytes; the kernel allows 64 KiB."""


class ReferrersDirectory(Directory):
    """The known referrers of the image `digest`."""

    __slots__ = ("_blob_files", "_digest", "_is_resolving", "_referrers")

    def __init__(
        self, blob_files: BlobSubsystems, referrers: ReferrerFetcher, digest: Digest, *, is_resolving: bool
    ) -> None:
        super().__init__(f"images/{digest}/referrers", blob_files.shown)
        self._blob_files = blob_files
        self._referrers = referrers
        self._digest = digest
        self._is_resolving = is_resolving

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        text = os.fsdecode(name)
        door, colon, artifact_type = text.partition(":")
        if door == "refresh" and bool(colon) == bool(artifact_type):
            return self._refresh(unquote(artifact_type), text)
        for known, node in await self.entries(caller):
            if known == name:
                return node
        digest = text.removesuffix(_SUFFIX)
        if not self._is_resolving or digest == text or not is_digest(digest):
            raise missing(name)
        found = await caller.wait(lambda: self._referrers.find(self._digest, Digest(digest)))
        return ReferrerFile(self._blob_files, self._referrers, found)

    async def entries(self, caller: Caller) -> Listing:
        return [
            (f"{one.descriptor.digest}{_SUFFIX}".encode(), ReferrerFile(self._blob_files, self._referrers, one))
            for one in await self._referrers.known(self._digest)
        ]

    async def xattrs(self) -> dict[bytes, bytes]:
        return as_error(self._blob_files.failures.get(place_of(self._digest)))

    def _refresh(self, artifact_type: str, name: str) -> Node:
        async def render() -> bytes:
            found = await self._referrers.refresh(self._digest, artifact_type)
            return "".join(f"{one.descriptor.digest}\n" for one in found).encode()

        return ReportFile(f"images/{self._digest}/referrers/{name}", self._shown, render)


class ReferrerFile(BlobFile):
    """The document of one referrer. Open succeeds only if the document refers to the image."""

    __slots__ = ("_referrer", "_referrers")

    def __init__(self, blob_files: BlobSubsystems, referrers: ReferrerFetcher, referrer: Referrer) -> None:
        super().__init__(blob_files, referrer.descriptor)
        self.number = control_number(f"images/{referrer.subject}/referrers/{referrer.descriptor.digest}")
        self._referrers = referrers
        self._referrer = referrer

    async def open(self, flags: int, caller: Caller) -> Handle:
        if not flags & WRITING:
            await caller.wait(lambda: self._referrers.read(self._referrer))
        return await super().open(flags, caller)

    async def xattrs(self) -> dict[bytes, bytes]:
        """Return the xattrs of the blob, with `artifact_type` and the `annotations` of the referrers list as JSON."""
        descriptor = self._referrer.descriptor
        annotations = msgspec.json.encode(descriptor.annotations)
        facts = {"artifact_type": descriptor.artifact_type.encode(), "media_type": descriptor.media_type.encode()}
        if len(annotations) <= _ANNOTATIONS_MAX:
            facts["annotations"] = annotations
        return await super().xattrs() | {f"user.imgfs.{key}".encode(): value for key, value in facts.items() if value}
