"""Introduces the rooms to one another: every object of the daemon is made here, once, and handed to who needs it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import msgspec
import trio

from imgfs import __version__
from imgfs.aio.flight import Flights
from imgfs.check.mender import Mender, Wards
from imgfs.config import Config
from imgfs.content import labels
from imgfs.content.ingests import IngestStore
from imgfs.content.store import ContentStore
from imgfs.database import Database
from imgfs.fs.node import Shown
from imgfs.fs.subsystems import Subsystems
from imgfs.gc.rooms import Rooms
from imgfs.gc.space import Space, space_of
from imgfs.gc.using import Using
from imgfs.gc.watch import Limits, Room
from imgfs.images import catalog, names
from imgfs.kernel.disk import era, sync_filesystem
from imgfs.kernel.probe import Capabilities, Capability, probe
from imgfs.layers.store import LayerStore
from imgfs.leases import clock, store
from imgfs.leases.pins import Pins
from imgfs.registry.client import Registry
from imgfs.rescue.keeper import Keeper
from imgfs.rescue.rebuild import Rebuilt, Tables
from imgfs.rescue.relearn import relearn
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs, Terms
from imgfs.snapshots import graph, notes, rows
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.failures import Failures
from imgfs.transfer.images import Images
from imgfs.transfer.layers import Layers
from imgfs.transfer.listings import Listings
from imgfs.transfer.progress import Transfers
from imgfs.transfer.referrers import Referrers
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.status import StatusReporter

TABLES = Tables(
    schemas=(
        names.SCHEMA,
        catalog.SCHEMA,
        graph.SCHEMA,
        rows.SCHEMA,
        labels.SCHEMA,
        store.SCHEMA,
        clock.SCHEMA,
    ),
    kept=(names.KEPT, labels.KEPT, *rows.KEPT, graph.KEPT, *store.KEPT),
    finders=(notes.adopt, relearn),
)
"""What the database consists of, and what of it files cannot rebuild."""
_log = logging.getLogger("imgfs.daemon")


@dataclass(frozen=True, slots=True)
class Mounting:
    """What to mount where: absolute paths without symbolic links, and the options in force."""

    mountpoint: Path
    state: Path
    config: Config
    foreground: bool
    nosuid: bool = False
    """Whether setuid bits and device nodes are off in any case."""

    @property
    def is_trusted(self) -> bool:
        """Whether views behave as an unpacked directory does: setuid bits and device nodes work.

        As soon as anybody but root gets in, they do not: any image can hold a setuid shell.
        """
        return self.config.is_private and not self.nosuid


@dataclass(frozen=True, slots=True)
class Opened:
    """The state directory, open: its database, how that was rebuilt if it was, its copy, its layers."""

    database: Database
    rebuilt: Rebuilt | None
    keeper: Keeper
    layers: LayerStore


def assemble(mounting: Mounting, opened: Opened, registry: Registry, nursery: trio.Nursery) -> Subsystems:
    """Everything that the tree shows, of one state directory; what runs by itself runs in `nursery`."""
    started, state, config = time.time_ns(), mounting.state, mounting.config
    database, layers = opened.database, opened.layers
    content = ContentStore(state, labels.Labels(database))
    ingests = IngestStore(content, nursery, era(state))
    leases, pins, uses = store.Leases(database), Pins(), clock.AccessClock(database)
    name_table, known, chains = names.Names(database), catalog.Catalog(database), graph.SnapshotGraph(database)
    transfers, failures = Transfers(), Failures()
    blobs = Blobs(content, ingests, known, registry, transfers, failures, nursery)
    fetcher = Layers(layers, content, ingests, known, registry, transfers, failures, nursery)
    documents = Documents(content, known, blobs, config.chosen_platform)
    images = Images(documents, blobs, fetcher, chains, content, layers, known, failures, pins, uses.touched)
    views, metadata = Views(chains, images, nursery), MetadataImages(state)
    snapshots = SnapshotStore(state, database, chains, sync_filesystem)
    terms = _terms(mounting)
    rootfs = Rootfs(terms, metadata, chains, views, snapshots, layers, nursery)
    using = Using(content, transfers, fetcher, rootfs)
    rooms = Rooms(
        name_table,
        known,
        content,
        ingests,
        layers,
        chains,
        views,
        snapshots,
        metadata,
        leases,
        pins,
        uses,
        content.labels,
        using,
        documents.forget,
        config.ingest_idle_seconds,
    )
    wards = Wards(
        content,
        ingests,
        layers,
        metadata,
        rootfs,
        views,
        chains,
        known,
        documents,
        blobs,
        images,
        opened.keeper,
    )
    room = Room(state, rooms)
    return Subsystems(
        config=config,
        state=state,
        shown=Shown(os.geteuid(), os.getegid(), started),
        names=name_table,
        catalog=known,
        content=content,
        ingests=ingests,
        layers=layers,
        graph=chains,
        views=views,
        snapshots=snapshots,
        rootfs=rootfs,
        leases=leases,
        room=room,
        mender=Mender(state, TABLES, wards),
        documents=documents,
        resolver=Resolver(name_table, known, documents, registry, failures, nursery, pins),
        referrers=Referrers(known, documents, registry, failures, nursery, pins),
        listings=Listings(registry, failures, nursery),
        images=images,
        blobs=blobs,
        transfers=transfers,
        failures=failures,
        status=StatusReporter(documents, images, name_table, content, layers, known, transfers, failures),
        space=lambda: _space(room, limits_of(config)),
        metrics=lambda: _metrics(registry, transfers, name_table, content, layers),
        describe=lambda: _describe(mounting, started, terms, opened.rebuilt, is_read_only=content.is_read_only),
        works=Flights(nursery, grace=0, memory=0),
        owner=None if os.geteuid() == 0 else (os.geteuid(), os.getegid()),
    )


def limits_of(config: Config) -> Limits:
    """When room is made."""
    return Limits(config.quota_bytes, config.free_space_bytes, config.free_space_percent)


async def _space(room: Room, limits: Limits) -> Space:
    """What `df` says of the tree. Raises StorageFailed."""
    return space_of(await room.disk(), limits, await room.used() if limits.quota else 0)


def _terms(mounting: Mounting) -> Terms:
    return Terms(
        str(mounting.mountpoint),
        _capabilities(mounting),
        is_root=os.geteuid() == 0,
        trusted=mounting.is_trusted,
        private=mounting.config.is_private,
    )


def _capabilities(mounting: Mounting) -> Capabilities:
    """What can be mounted here; each refusal goes to the log once, and to `.imgfs/state.json`."""
    found = probe(mounting.state)
    if mounting.config.views == "fuse":
        off = Capability("the configuration says views = fuse")
        found = replace(found, erofs=off, overlay_over_erofs=off)
    for name, capability in _named(found).items():
        if not capability:
            _log.info("cannot be mounted here", extra={"what": name, "reason": capability.reason})
    return found


def _named(capabilities: Capabilities) -> dict[str, Capability]:
    return {field.name: getattr(capabilities, field.name) for field in fields(capabilities)}


def _describe(mounting: Mounting, started: int, terms: Terms, rebuilt: Rebuilt | None, *, is_read_only: bool) -> bytes:
    state = {
        "version": __version__,
        "pid": os.getpid(),
        "mountpoint": told(mounting.mountpoint),
        "state": told(mounting.state),
        "read_only": is_read_only,
        "started": started,
        "platform": str(mounting.config.chosen_platform),
        "access": mounting.config.access,
        "views": "kernel" if terms.is_root and terms.capabilities.erofs else "fuse",
        "trusted": terms.trusted,
        "database": asdict(rebuilt) if rebuilt else "whole",
        "mounts": {name: one.reason or "works" for name, one in _named(terms.capabilities).items()},
    }
    return msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"


def told(path: Path) -> str:
    """The path as text that any reader takes: bytes that are no UTF-8 are written as escapes."""
    return bytes(path).decode(errors="backslashreplace")


def _metrics(
    registry: Registry, transfers: Transfers, name_table: names.Names, content: ContentStore, layers: LayerStore
) -> str:
    figures = {
        "imgfs_transfers_completed_total": transfers.completed,
        "imgfs_transfers_running": len(list(transfers)),
        "imgfs_names": len(name_table),
        "imgfs_blobs": len(list(content)),
        "imgfs_layers": len(list(layers)),
    }
    families = {f"imgfs_registry_{name}_total": family for name, family in registry.statistics().families().items()}
    families |= {name: {(): value} for name, value in figures.items()}
    return "".join(_family(name, family) for name, family in families.items())


def _family(name: str, family: dict[tuple[tuple[str, str], ...], int]) -> str:
    """One metric in the text format of Prometheus; labels are hosts and words, which need no escapes."""
    lines = [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"]
    for about, value in family.items():
        said = ",".join(f'{label}="{text}"' for label, text in about)
        lines.append(f"{name}{f'{{{said}}}' if said else ''} {value}")
    return "\n".join(lines) + "\n"
