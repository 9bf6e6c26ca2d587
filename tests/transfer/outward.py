"""A scene that pushes: images come from one registry and go to another."""

from __future__ import annotations

from dataclasses import replace

from imgfs.images.catalog import Catalog
from imgfs.leases.pins import Pins
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference
from imgfs.testing.build import AMD64, BuiltIndex, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.uploads import PushRegistry
from imgfs.transfer.push.pushes import Pushes, PushRequest
from imgfs.transfer.push.report import PushReport
from imgfs.transfer.referrers import ReferrerFetcher
from imgfs.transfer.transfers import Transfer
from tests.transfer.scene import Scene

TARGET = "mine/app"


class Outward:
    """A scene whose images come from `source` and go to `target`; both may be the same."""

    def __init__(self, scene: Scene, source: PushRegistry, target: PushRegistry) -> None:
        self.scene = scene
        self.source = source
        self.target = target
        self.pins = Pins()
        shared = scene.client, scene.failures, scene.nursery
        self.referrers = ReferrerFetcher(scene.catalog, scene.documents, *shared, self.pins)
        self.pushes = self.pushes_with(scene.catalog)

    def pushes_with(self, known: Catalog) -> Pushes:
        """Pushes that record locations in the catalogue `known`."""
        scene = self.scene
        local = replace(scene.local, catalog=known, pins=self.pins)
        more = self.referrers, scene.client, scene.transfers, scene.nursery
        return Pushes(local, scene.documents, scene.blobs, *more)

    def sending(self) -> list[Transfer]:
        """The blobs that are being pushed."""
        return [one for one in self.scene.transfers if one.direction == "push"]

    def name(self, tag: str = "1", repository: str = TARGET) -> Reference:
        """The reference that the push targets."""
        return Reference(self.target.host, repository, tag)

    async def push(
        self,
        digest: Digest,
        to: Reference | None = None,
        *,
        all_platforms: bool = False,
        referrers: bool = False,
    ) -> PushReport:
        """Push a resolved image."""
        platform = None if all_platforms else AMD64
        return await self.pushes.push(PushRequest(digest, to or self.name(), platform, referrers))

    async def stored(self, made: Image) -> Digest:
        """An image that is stored and that no registry is known to have."""
        for data in (*made.blobs.values(), made.document):
            await self.scene.content.add(Digest.of(data), data)
        return made.digest

    def assert_there(self, made: Image | BuiltIndex, selector: str = "1") -> None:
        """Assert that the target has every document and blob of the image."""
        assert self.target.manifest(TARGET, selector) == (made.document, made.media_type)
        for one in made.images if isinstance(made, BuiltIndex) else [made]:
            assert self.target.manifest(TARGET, one.digest) == (one.document, one.media_type)
            assert {digest: self.target.blob(TARGET, digest) for digest in one.blobs} == one.blobs


def two_layers(mark: str = "x", *, docker: bool = False) -> Image:
    return image([layer([File(f"{mark}{n}", f"{mark} {n}".encode() * 300)]) for n in range(2)], docker=docker)
