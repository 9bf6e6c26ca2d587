"""Reads manifests, indexes and configs. Each is fetched when it is first needed, and parsed once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imgfs.aio.threads import run_cpu
from imgfs.content.store import ContentStore
from imgfs.errors import Malformed, NotFound, StateError, TooLarge, Unsupported, VerificationFailed
from imgfs.images.catalog import Catalog
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import (
    CONFIG_SIZE_MAX,
    INDEX_NESTING_MAX,
    ImageConfig,
    ImageIndex,
    Manifest,
    parse_config,
    parse_document,
)
from imgfs.oci.platform import Platform, choose
from imgfs.oci.reference import Source
from imgfs.transfer.blobs import UNKNOWN_SIZE, Blobs

_log = logging.getLogger("imgfs.transfer")

_PARSED_KEPT = 256
_IMAGES = MANIFEST_TYPES | INDEX_TYPES


@dataclass(frozen=True, slots=True)
class PlatformImage:
    """The manifest of one platform. `trail` is the path of documents to it, beginning with the image's own."""

    trail: tuple[Digest, ...]
    manifest: Manifest

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return self.trail[-1]


class Documents:
    """The documents of images, by digest. `platform` is the default platform for reading an index."""

    def __init__(self, content: ContentStore, catalog: Catalog, blobs: Blobs, platform: Platform) -> None:
        self.platform = platform
        self._content = content
        self._catalog = catalog
        self._blobs = blobs
        self._parsed: OrderedDict[Digest, Manifest | ImageIndex] = OrderedDict()

    def __contains__(self, digest: Digest) -> bool:
        """Return whether the parsed document is in memory."""
        return digest in self._parsed

    async def store(
        self, own: Descriptor, data: bytes, source: Source, subject: Digest | None = None
    ) -> Manifest | ImageIndex:
        """Parse, store and record a document that `source` sent, and record that `source` has what it mentions.

        Durable on return. With `subject` the document must refer to that image. Raises Malformed, Unsupported,
        TooLarge, VerificationFailed, NoSpace, StorageFailed. A document that is refused leaves nothing behind.
        """
        document = await self._parse(own.digest, data, own.media_type, f"{source}@{own.digest}")
        if subject is not None:
            try:
                check_subject(document, own.digest, subject, str(source))
            except VerificationFailed:
                self.forget([own.digest])
                raise
        await self._content.add(own.digest, data)
        await self._record(own.digest, len(data), document, [source])
        return document

    async def stored(self, digest: Digest) -> Manifest | ImageIndex | None:
        """Return the document if it is stored, else None. Sends no request. Raises Malformed, StorageFailed."""
        if digest not in self._content:
            return None  # also if it is parsed: a removed document must be fetched again by the next pull
        if digest in self._parsed:
            return self._parsed[digest]
        try:
            data = await self._content.read(digest)
        except NotFound:
            return None  # it is damaged, or was removed meanwhile
        document = await self._parse(digest, data, "")
        await self._record_stored(digest, len(data), document)
        return document

    def forget(self, digests: Iterable[Digest]) -> None:
        """Drop parsed documents that were garbage collected. Reading one again records its children again."""
        for digest in digests:
            self._parsed.pop(digest, None)

    async def places(self, digest: Digest) -> tuple[Source, ...]:
        """Return the locations of the image `digest`: those of its names, and those whose index lists it."""
        claims = await self._catalog.claims(digest)
        return tuple(one.source for one in claims if one.descriptor is None or one.descriptor.media_type in _IMAGES)

    async def read_places(self, digest: Digest) -> tuple[Source, ...]:
        """Return the locations that have delivered the document; a name alone is not enough."""
        claims = await self._catalog.claims(digest)
        return tuple(one.source for one in claims if one.descriptor and one.descriptor.media_type in _IMAGES)

    async def read(
        self, digest: Digest, said: Descriptor | None = None, own: tuple[Source, ...] = ()
    ) -> Manifest | ImageIndex:
        """Return the manifest or index `digest`. It is fetched if it is not stored.

        `said` is its descriptor in the index above it, `own` are the locations of that index.
        """
        stored = await self.stored(digest)
        if stored is not None:
            return stored
        own = own or await self.places(digest)
        known = said or await self._catalog.descriptor(digest)
        if known is None or known.media_type not in _IMAGES:
            known = Descriptor(digest, UNKNOWN_SIZE, OCI_INDEX)
        data = await self._blobs.read(known, own)
        document = await self._parse(digest, data, "" if known.size == UNKNOWN_SIZE else known.media_type)
        await self._record(digest, len(data), document, own)
        return document

    async def platform_image(self, digest: Digest, platform: Platform | None = None) -> PlatformImage:
        """Return the manifest of the image `digest` for `platform` (None: the default platform).

        Raises NotFound, which names the available platforms, if the index has no manifest for it.
        """
        wanted = platform or self.platform
        if (stored := await self.stored_platform_image(digest, wanted)) is not None:
            return stored
        return await self._descend((digest,), None, await self.places(digest), wanted)

    async def stored_platform_image(self, digest: Digest, platform: Platform) -> PlatformImage | None:
        """Return the same from stored documents; None if one is not stored. Raises Malformed, StorageFailed."""
        trail = (digest,)
        while len(trail) <= INDEX_NESTING_MAX + 1:
            document = await self.stored(trail[-1])
            if not isinstance(document, ImageIndex):
                return PlatformImage(trail, document) if document else None
            trail += (_pick(trail[-1], document, platform).digest,)
        return None

    async def config(self, manifest: Manifest, own: tuple[Source, ...] = ()) -> ImageConfig:
        """Return the image config, which has one diff ID for each layer. It is fetched if it is not stored.

        Raises Malformed, TooLarge, Unsupported.
        """
        check_config_size(manifest.config)
        config = parse_config(await self._blobs.read(manifest.config, own))
        for diff_id in config.diff_ids:
            if diff_id.algorithm != "sha256":
                raise Unsupported(f"image config {manifest.config.digest}: diff ID {diff_id}: imgfs proves sha256 only")
        if len(config.diff_ids) != len(manifest.layers):
            raise Malformed(
                f"image config {manifest.config.digest}: has {len(config.diff_ids)} diff IDs "
                f"for {len(manifest.layers)} layers"
            )
        return config

    async def _descend(
        self, trail: tuple[Digest, ...], said: Descriptor | None, own: tuple[Source, ...], platform: Platform
    ) -> PlatformImage:
        document = await self.read(trail[-1], said, own)
        if isinstance(document, Manifest):
            return PlatformImage(trail, document)
        if len(trail) > INDEX_NESTING_MAX:
            raise TooLarge(f"image index {trail[-1]}: nested deeper than {INDEX_NESTING_MAX}")
        child = _pick(trail[-1], document, platform)
        return await self._descend((*trail, child.digest), child, own, platform)

    async def _parse(self, digest: Digest, data: bytes, media_type: str, name: str = "") -> Manifest | ImageIndex:
        try:
            document = await run_cpu(parse_document, data, media_type)
        except (Malformed, Unsupported, TooLarge) as error:
            raise type(error)(
                f"{name or f'image {digest}'}: {error.message}; push the image again, or pull another"
            ) from None
        self._parsed[digest] = document
        if len(self._parsed) > _PARSED_KEPT:
            self._parsed.popitem(last=False)
        return document

    async def _record_stored(self, digest: Digest, size: int, document: Manifest | ImageIndex) -> None:
        """Record the children of a stored document, without locations, which are unknown for an ingested document.

        An error is only logged: reading must work on a full disk and in a read-only state directory.
        """
        if await self._catalog.proven(digest) is None:
            try:
                await self._record(digest, size, document, [])
            except StateError as error:
                _log.warning("document not recorded", extra={"digest": digest, "error": error.message})

    async def _record(
        self, digest: Digest, size: int, document: Manifest | ImageIndex, sources: Sequence[Source]
    ) -> None:
        own = Descriptor(digest, size, document.media_type)
        await self._catalog.add(document.children, sources, own)


def check_subject(document: Manifest | ImageIndex, digest: Digest, subject: Digest, place: str) -> None:
    """Raise VerificationFailed unless the document `digest`, which is at `place`, refers to the image `subject`."""
    if document.subject != subject:
        raise VerificationFailed(
            f"referrer {digest}: at {place} it refers to {document.subject or 'nothing'}, expected {subject}; read it "
            "as a referrer of the image that it names"
        )


def check_config_size(config: Descriptor) -> None:
    """Raise TooLarge for a config over the limit, before it is fetched."""
    if config.size > CONFIG_SIZE_MAX:
        raise TooLarge(f"image config {config.digest}: has {config.size} bytes, the limit is {CONFIG_SIZE_MAX}")


def _pick(digest: Digest, index: ImageIndex, platform: Platform) -> Descriptor:
    images = [one for one in index.manifests if one.media_type in _IMAGES]
    chosen = choose(platform, [one.platform for one in images])
    if chosen is not None:
        return images[chosen]
    unlabelled = [one for one in images if one.platform is None]
    if unlabelled:
        return unlabelled[0]
    offered = ", ".join(sorted({str(one.platform) for one in images})) or "nothing"
    raise NotFound(f"image {digest}: has nothing for {platform}; it has {offered}")
