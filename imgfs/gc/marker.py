"""The mark: what can be reached. It only grows, so roots may be added at any time and the walk goes on from there.

index -> manifests -> config and layers -> chains; an image -> its referrers; a chain -> its parents, layers and blobs;
and what labels say. Each thing is visited once; documents are read in threads, a few dozen at a time, so memory is that
of the sets.
"""

from __future__ import annotations

from collections.abc import Iterable

from imgfs.aio.threads import run_cpu
from imgfs.content.ingests.refs import promised_digest
from imgfs.errors import NotFound
from imgfs.gc.documents import Wanted, read_diff_ids, read_documents
from imgfs.gc.labels import References, references
from imgfs.gc.stores import Stores
from imgfs.leases.resource import Kind, Resource, content, snapshot
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import EMPTY, Digest, chain_ids, is_digest
from imgfs.oci.manifest import CONFIG_SIZE_MAX, MANIFEST_SIZE_MAX, ImageIndex, Manifest

_BATCH = 32
_IMAGES = INDEX_TYPES | MANIFEST_TYPES


class Marker:
    """What is reached so far: `blobs` by digest, `layers` by diff ID, `chains` by chain ID."""

    def __init__(self, stores: Stores) -> None:
        self.blobs: set[Digest] = set()
        self.layers: set[Digest] = set()
        self.chains: set[Digest] = set()
        self.ingests: set[str] = set()
        """Refs of unfinished writes that a lease names."""
        self.unbuilt: set[Digest] = set()
        """Chains that are reached and that no row tells of."""
        self.unresolved: set[Digest] = set()
        """Reached, but not stored, so nobody knows what they refer to."""
        self._stores = stores
        self._walked: set[Digest] = set()
        self._documents: list[Digest] = []
        self._configs: list[tuple[Digest, tuple[Descriptor, ...]]] = []
        self._plain: list[Digest] = []
        self._subjects: list[Digest] = []
        self._pending: list[Resource] = []
        self._unread: set[Digest] = set()
        """Configs that are reached and not stored."""
        self._back: dict[Resource, list[Digest]] = {}

    def refer_back(self, blob: Digest, targets: Iterable[Resource]) -> None:
        """`blob` is reached as soon as one of `targets` is. To be said before the walk."""
        for target in targets:
            self._back.setdefault(target, []).append(blob)

    def names(self) -> None:
        """What refers back to a name is reached, if that is registered."""
        for target in self._back:
            if target.kind is Kind.IMAGE and self._stores.names.get(target.id) is not None:
                self._follow_back(target)

    def resource(self, resource: Resource) -> None:
        """Reach what a lease, a pin or a label names."""
        match resource.kind:
            case Kind.CONTENT:
                self.image(Digest(resource.id), may_be_layer=True)
            case Kind.LAYER:
                self.layers.add(Digest(resource.id))
            case Kind.INGEST:
                self._ingest(resource.id.replace("%2F", "/"))
            case Kind.SNAPSHOT:
                self._snapshot(resource.id)
            case Kind.IMAGE:
                self._name(resource.id)

    def image(self, digest: Digest, *, may_be_layer: bool = False) -> None:
        """Reach a blob and, if it is a document, all that it refers to; if it may be a layer, its tar."""
        if digest in self._walked:
            return
        self._walked.add(digest)
        self._subjects.append(digest)
        self.blob(digest)
        info = self._stores.content.info(digest)
        if info is None:
            self.unresolved.add(digest)
        elif info.size <= MANIFEST_SIZE_MAX:
            self._documents.append(digest)
            return
        if may_be_layer:
            self._plain.append(digest)

    def blob(self, digest: Digest) -> None:
        """Reach a blob, and what its labels name."""
        if digest not in self.blobs:
            self.blobs.add(digest)
            self._follow(references(self._stores.labels(digest)), content(digest))

    def chain(self, chain_id: Digest) -> None:
        """Reach a chain with its parents, their layers and their blobs."""
        here: Digest | None = chain_id
        while here is not None and here not in self.chains:
            found = self._stores.graph.find(here)
            if found is None:
                self.unbuilt.add(here)
                self._follow_back(snapshot(here))
                return
            self.chains.add(here)
            if found.diff_id is not None:
                self.layers.add(found.diff_id)
            if found.blob is not None:
                self.blob(found.blob)
            self._follow(references(self._snapshot_labels(here)), snapshot(here))
            here = found.parent

    def has_work(self) -> bool:
        """Whether `run` has to walk on, or something came that was reached before it was here."""
        queued = self._pending or self._documents or self._configs or self._plain or self._subjects
        here = self._stores.content
        return bool(queued) or any(one in here for one in self.unresolved) or any(one in here for one in self._unread)

    def take_news(self) -> None:
        """Walk on from what came meanwhile."""
        for digest in [one for one in self.unresolved if one in self._stores.content]:
            self.unresolved.discard(digest)
            self._walked.discard(digest)
            self.image(digest)
        for digest in [one for one in self._unread if one in self._stores.content]:
            self._unread.discard(digest)
            self._configs.append((digest, ()))

    async def run(self) -> None:
        """Walk until all is reached. Raises StorageFailed where it cannot be known. A cancelled walk can go on."""
        while self._pending or self._documents or self._configs or self._plain or self._subjects:
            while self._pending:
                self.resource(self._pending.pop())
            await self._read_documents()
            await self._read_configs()
            await self._find_layers()
            await self._find_referrers()

    async def _read_documents(self) -> None:
        batch = self._documents[:_BATCH]
        found = await run_cpu(read_documents, [self._wanted(digest) for digest in batch])
        del self._documents[: len(batch)]
        for digest, document in zip(batch, found, strict=True):
            if isinstance(document, Manifest):
                self._manifest(document)
            elif isinstance(document, ImageIndex):
                self._index(document)
            else:
                self._plain.append(digest)
                if document == "missing" and digest not in self._stores.content:
                    self.unresolved.add(digest)

    def _index(self, index: ImageIndex) -> None:
        for child in index.manifests:
            (self.image if child.media_type in _IMAGES else self.blob)(child.digest)

    def _manifest(self, manifest: Manifest) -> None:
        for child in manifest.children:
            self.blob(child.digest)
        self._configs.append((manifest.config.digest, manifest.layers))

    async def _read_configs(self) -> None:
        batch = self._configs[:_BATCH]
        small = [one for one, _ in batch if self._size(one) <= CONFIG_SIZE_MAX]
        found = dict(zip(small, await run_cpu(read_diff_ids, [self._wanted(one) for one in small]), strict=True))
        del self._configs[: len(batch)]
        for digest, layers in batch:
            diff_ids = found.get(digest)
            if diff_ids is None:  # what the layers hold was told by those who unpacked them
                self._plain += [layer.digest for layer in layers]
                if digest not in self._stores.content:
                    self._unread.add(digest)
            else:
                self._rootfs(diff_ids)

    def _rootfs(self, diff_ids: tuple[Digest, ...]) -> None:
        self.layers.update(diff_ids)
        for chain_id in reversed(chain_ids(diff_ids) or [EMPTY]):
            self.chain(chain_id)

    async def _find_layers(self) -> None:
        """A blob that is no document may be a layer: then its tar is reached too."""
        batch = self._plain[:_BATCH]
        self.layers.update((await self._stores.catalog.unpacked(batch)).values())
        del self._plain[: len(batch)]

    def _name(self, name: str) -> None:
        if found := self._stores.names.get(name):
            self.image(found.digest)

    def _ingest(self, ref: str) -> None:
        """With what is known of the blob that it will be, so that somebody can go on with it."""
        self.ingests.add(ref)
        if (digest := promised_digest(ref)) is not None:
            self.blob(digest)

    async def _find_referrers(self) -> None:
        """What is known to refer to an image stays with it, and what that mentions."""
        batch = self._subjects[:_BATCH]
        for digest in await self._stores.catalog.referrers.of_any(batch):
            self.image(digest)
        del self._subjects[: len(batch)]

    def _snapshot(self, id: str) -> None:
        digest, at, _ = id.partition("@")
        if is_digest(digest):
            (self.image if at else self.chain)(Digest(digest))

    def _snapshot_labels(self, id: str) -> dict[str, bytes]:
        try:
            return self._stores.snapshots.labels(id)
        except NotFound:
            return {}

    def _follow(self, found: References, own: Resource) -> None:
        self._pending += found.forward
        self._follow_back(own)

    def _follow_back(self, own: Resource) -> None:
        self._pending += [content(blob) for blob in self._back.get(own, ())]

    def _wanted(self, digest: Digest) -> Wanted:
        return digest, self._stores.content.path(digest)

    def _size(self, digest: Digest) -> int:
        info = self._stores.content.info(digest)
        return info.size if info is not None else 0
