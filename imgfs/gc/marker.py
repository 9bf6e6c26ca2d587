"""The mark: the set of things that roots reach. It only grows, so a caller may add roots at any time and walk on.

An index reaches its manifests, a manifest its config, layers and chains, an image its referrers, a chain its parents,
layers and blobs, and each of them what its labels name. The walk visits each thing once and reads documents in threads,
a few dozen at a time, so it needs memory only for the sets.

Labels of `containerd.io/gc.*` (containerd, docs/garbage-collection.md): `gc.root` keeps a thing. `gc.ref.content`,
`gc.ref.image` and `gc.ref.snapshot.<snapshotter>`, each with an optional suffix (`.0`, `/x`), keep what they name.
`gc.bref.*` keeps the labelled thing as long as what it names is kept. An image is a registered name. The walk ignores a
label that makes no sense, because clients may write any text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgfs.aio.threads import run_cpu
from imgfs.content.ingests.refs import promised_digest
from imgfs.errors import Malformed, NotFound, TooLarge, Unsupported, from_os
from imgfs.gc.stores import GarbageStores
from imgfs.leases.resource import Resource, ResourceKind, content, snapshot
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import EMPTY, Digest, chain_ids, is_digest
from imgfs.oci.manifest import (
    CONFIG_SIZE_MAX,
    MANIFEST_SIZE_MAX,
    ImageIndex,
    Manifest,
    parse_config,
    parse_document,
)

_BATCH = 32
_IMAGES = INDEX_TYPES | MANIFEST_TYPES
_PREFIX = "containerd.io/gc."
_ROOT = f"{_PREFIX}root"
_log = logging.getLogger("imgfs.gc")


@dataclass(frozen=True, slots=True)
class LabelReferences:
    """What the labels of one thing say about reachability."""

    is_root: bool
    forward: tuple[Resource, ...]
    back: tuple[Resource, ...]


_NO_REFERENCES = LabelReferences(is_root=False, forward=(), back=())


def references(labels: Mapping[str, str | bytes]) -> LabelReferences:
    """Read the labels of one thing."""
    if not any(key.startswith(_PREFIX) for key in labels):
        return _NO_REFERENCES
    return LabelReferences(_ROOT in labels, _named(labels, f"{_PREFIX}ref."), _named(labels, f"{_PREFIX}bref."))


def _named(labels: Mapping[str, str | bytes], prefix: str) -> tuple[Resource, ...]:
    found = (_resource(key[len(prefix) :], value) for key, value in labels.items() if key.startswith(prefix))
    return tuple(resource for resource in found if resource is not None)


def _resource(what: str, value: str | bytes) -> Resource | None:
    id = value if isinstance(value, str) else value.decode(errors="surrogateescape")
    kind = what.replace("/", ".").partition(".")[0]
    if kind == "content" and is_digest(id):
        return Resource(ResourceKind.CONTENT, id)
    if kind == "image" and id:
        return Resource(ResourceKind.IMAGE, id)
    return Resource(ResourceKind.SNAPSHOT, id) if kind == "snapshot" and what != kind and id else None


class Marker:
    """The things reached so far: `blobs` by digest, `layers` by diff ID, `chains` by chain ID."""

    def __init__(self, stores: GarbageStores) -> None:
        self.blobs: set[Digest] = set()
        self.layers: set[Digest] = set()
        self.chains: set[Digest] = set()
        self.ingests: set[str] = set()
        """Refs of unfinished writes that a lease names."""
        self.unbuilt: set[Digest] = set()
        """Chains that are reached and have no row."""
        self.unresolved: set[Digest] = set()
        """Digests that are reached and not stored, so what they refer to is unknown."""
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
        """Let `blob` be reached as soon as one of `targets` is. Call this before the walk."""
        for target in targets:
            self._back.setdefault(target, []).append(blob)

    def names(self) -> None:
        """Reach the blobs that refer back to a registered name."""
        for target in self._back:
            if target.kind is ResourceKind.IMAGE and self._stores.names.get(target.id) is not None:
                self._follow_back(target)

    def resource(self, resource: Resource) -> None:
        """Reach the thing that a lease, a pin or a label names."""
        match resource.kind:
            case ResourceKind.CONTENT:
                self.image(Digest(resource.id), may_be_layer=True)
            case ResourceKind.LAYER:
                self.layers.add(Digest(resource.id))
            case ResourceKind.INGEST:
                self._ingest(resource.id.replace("%2F", "/"))
            case ResourceKind.SNAPSHOT:
                self._snapshot(resource.id)
            case ResourceKind.IMAGE:
                self._name(resource.id)

    def image(self, digest: Digest, *, may_be_layer: bool = False) -> None:
        """Reach a blob; also everything that it refers to if it is a document, and its tar if it may be a layer."""
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
        """Reach a blob and what its labels name."""
        if digest not in self.blobs:
            self.blobs.add(digest)
            self._follow(references(self._stores.labels(digest)), content(digest))

    def chain(self, chain_id: Digest) -> None:
        """Reach a chain, its parents, and the layers and blobs of all of them."""
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
        """Whether `run` has to walk on: for queued work, or for something that was stored after it was reached."""
        queued = self._pending or self._documents or self._configs or self._plain or self._subjects
        here = self._stores.content
        return bool(queued) or any(one in here for one in self.unresolved) or any(one in here for one in self._unread)

    def queue_stored(self) -> None:
        """Queue what was stored after it was reached."""
        for digest in [one for one in self.unresolved if one in self._stores.content]:
            self.unresolved.discard(digest)
            self._walked.discard(digest)
            self.image(digest)
        for digest in [one for one in self._unread if one in self._stores.content]:
            self._unread.discard(digest)
            self._configs.append((digest, ()))

    async def run(self) -> None:
        """Walk until nothing is queued. Can go on after a cancellation. Raises StorageFailed if a read fails."""
        while self._pending or self._documents or self._configs or self._plain or self._subjects:
            while self._pending:
                self.resource(self._pending.pop())
            await self._read_documents()
            await self._read_configs()
            await self._find_layers()
            await self._find_referrers()

    async def _read_documents(self) -> None:
        batch = self._documents[:_BATCH]
        found = await run_cpu(_read_documents, [self._wanted(digest) for digest in batch])
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
        found = dict(zip(small, await run_cpu(_read_diff_ids, [self._wanted(one) for one in small]), strict=True))
        del self._configs[: len(batch)]
        for digest, layers in batch:
            diff_ids = found.get(digest)
            if diff_ids is None:  # the catalogue knows the diff IDs of layers that were unpacked
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
        """Reach the tars of blobs that are layers: any blob that is no document may be one."""
        batch = self._plain[:_BATCH]
        self.layers.update((await self._stores.catalog.unpacked(batch)).values())
        del self._plain[: len(batch)]

    def _name(self, name: str) -> None:
        if found := self._stores.names.get(name):
            self.image(found.digest)

    def _ingest(self, ref: str) -> None:
        """Reach an unfinished write and its future blob, so that the catalogue keeps where to fetch the rest."""
        self.ingests.add(ref)
        if (digest := promised_digest(ref)) is not None:
            self.blob(digest)

    async def _find_referrers(self) -> None:
        """Reach the known referrers of images."""
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

    def _follow(self, found: LabelReferences, own: Resource) -> None:
        self._pending += found.forward
        self._follow_back(own)

    def _follow_back(self, own: Resource) -> None:
        self._pending += [content(blob) for blob in self._back.get(own, ())]

    def _wanted(self, digest: Digest) -> _DocumentPath:
        return digest, self._stores.content.path(digest)

    def _size(self, digest: Digest) -> int:
        info = self._stores.content.info(digest)
        return info.size if info is not None else 0


# The walk reads documents itself and not through transfer/: it must neither fetch one nor push out what readers cached.

_DocumentPath = tuple[Digest, Path]


def _read_documents(wanted: Sequence[_DocumentPath]) -> list[Manifest | ImageIndex | str]:
    """Each document, or `plain` for other bytes and damaged documents, or `missing`. Raises StorageFailed.

    A disk that cannot be read ends the mark, because the sweep must know what a document refers to.
    """
    return [_document(digest, path) for digest, path in wanted]


def _read_diff_ids(wanted: Sequence[_DocumentPath]) -> list[tuple[Digest, ...] | None]:
    """The diff IDs of each config; None if it is missing or no config. Raises StorageFailed."""
    return [_diff_ids(digest, path) for digest, path in wanted]


def _document(digest: Digest, path: Path) -> Manifest | ImageIndex | str:
    data = _read(digest, path)
    if data is None:
        return "missing"
    try:
        return parse_document(data) if data.lstrip()[:1] == b"{" and _is_whole(digest, data) else "plain"
    except (Malformed, Unsupported, TooLarge):
        return "plain"


def _diff_ids(digest: Digest, path: Path) -> tuple[Digest, ...] | None:
    data = _read(digest, path)
    try:
        return parse_config(data).diff_ids if data is not None and _is_whole(digest, data) else None
    except (Malformed, Unsupported, TooLarge):
        return None


def _is_whole(digest: Digest, data: bytes) -> bool:
    if Digest.of(data, digest.algorithm) == digest:
        return True
    _log.warning("damaged document; what it refers to is not known", extra={"digest": digest})
    return False


def _read(digest: Digest, path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os(error, f"content {digest}") from None
