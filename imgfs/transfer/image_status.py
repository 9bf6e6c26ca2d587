"""Reports which parts of an image are stored, and why others are not: `status`, `status.json` and `imgfs status`."""

from __future__ import annotations

from typing import Literal

import msgspec

from imgfs.errors import ImgfsError
from imgfs.images.names import Names
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import Manifest, parse_config
from imgfs.transfer.documents import Documents, PlatformImage
from imgfs.transfer.images import Images
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.transfers import Transfers

State = Literal["local", "absent", "loading", "failed"]


class PartStatus(msgspec.Struct, frozen=True):
    """One blob of an image. `offset` of `size` bytes are stored; `where` is the source of a running fetch."""

    kind: Literal["manifest", "config", "layer"]
    digest: str
    size: int
    media_type: str
    state: State
    offset: int = 0
    diff_id: str | None = None
    where: str | None = None
    error: str | None = None


class ImageStatus(msgspec.Struct, frozen=True):
    """The status of an image for one platform. A `complete` image needs no registry."""

    digest: str
    names: list[str]
    platform: str
    complete: bool
    lazy: bool
    why: str
    error: str | None
    parts: list[PartStatus]


NOT_LAZY = "its layers have no table of contents that imgfs reads, so each is fetched whole before it is shown"


class StatusReporter:
    """Reports the state of images. Sends no request."""

    def __init__(
        self, local: LocalState, documents: Documents, images: Images, names: Names, transfers: Transfers
    ) -> None:
        self._content = local.content
        self._layers = local.layers
        self._catalog = local.catalog
        self._failures = local.failures
        self._documents = documents
        self._images = images
        self._names = names
        self._transfers = transfers

    async def image(self, digest: Digest) -> ImageStatus:
        """Return the status of `digest` for the default platform."""
        parts: list[PartStatus] = []
        found = await self._manifest(digest)
        if isinstance(found, Descriptor):
            parts.append(self._part("manifest", found, local=False))
        elif found is not None:
            info = self._content.info(found.digest)
            own = Descriptor(found.digest, info.size if info else 0, found.manifest.media_type)
            parts.append(self._part("manifest", own, local=info is not None))
            parts += await self._blobs(found.manifest)
        complete = len(parts) > 1 and all(part.state == "local" for part in parts)
        names = [name.name for name in self._names.of(digest)]
        error = self._images.failure(digest)
        return ImageStatus(
            digest,
            names,
            str(self._documents.platform),
            complete=complete,
            lazy=False,
            why=NOT_LAZY,
            error=error,
            parts=parts,
        )

    async def _manifest(self, digest: Digest) -> PlatformImage | Descriptor | None:
        """Return the manifest of the default platform, else its descriptor if it is not stored, else None."""
        try:
            image = await self._documents.stored_platform_image(digest, self._documents.platform)
        except ImgfsError:
            return None
        return image or await self._catalog.descriptor(digest)

    async def _blobs(self, manifest: Manifest) -> list[PartStatus]:
        stored = manifest.config.digest in self._content
        parts = [self._part("config", manifest.config, local=stored)]
        diff_ids: list[Digest | None] = [None] * len(manifest.layers)
        if stored:
            try:
                said = parse_config(await self._content.read(manifest.config.digest)).diff_ids
                diff_ids = [*said[: len(diff_ids)], *diff_ids[len(said) :]]
            except ImgfsError as error:
                self._failures.note(manifest.config.digest, error)
        for descriptor, promised in zip(manifest.layers, diff_ids, strict=True):
            diff_id = promised or await self._catalog.diff_id(descriptor.digest)
            # A stored blob is unpacked without a request. It was imported, or its layer was evicted.
            local = diff_id is not None and (diff_id in self._layers or descriptor.digest in self._content)
            parts.append(self._part("layer", descriptor, local=local, diff_id=diff_id))
        return parts

    def _part(
        self,
        kind: Literal["manifest", "config", "layer"],
        descriptor: Descriptor,
        *,
        local: bool,
        diff_id: Digest | None = None,
    ) -> PartStatus:
        transfer = self._transfers.get(descriptor.digest)
        error = self._failures.get(descriptor.digest)
        state: State = "local" if local else "loading" if transfer else "failed" if error else "absent"
        offset = descriptor.size if local else transfer.offset if transfer else 0
        where = transfer.place if transfer else None
        return PartStatus(
            kind, descriptor.digest, descriptor.size, descriptor.media_type, state, offset, diff_id, where, error
        )


def render_status(status: ImageStatus) -> str:
    """Render the status as text, one line for each part."""
    here = sum(part.offset for part in status.parts)
    total = sum(part.size for part in status.parts)
    lines = [
        f"image     {status.digest}",
        *(f"name      {name}" for name in status.names),
        f"platform  {status.platform}",
        f"complete  {'yes' if status.complete else 'no'}: {here} of {total} bytes are stored",
        f"lazy      {'yes' if status.lazy else 'no'}: {status.why}",
    ]
    if status.error:
        lines.append(f"error     {status.error}")
    for part in status.parts:
        line = f"{part.kind:<9} {part.state:<8} {part.offset:>12} {part.size:>12}  {part.digest}"
        lines.append(line + (f"  {part.error}" if part.error and part.state == "failed" else ""))
    return "\n".join(lines) + "\n"
