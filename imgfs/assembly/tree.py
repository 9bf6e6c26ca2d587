"""Make the tree's subsystems from the running plugins."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path

import trio

from imgfs import __version__
from imgfs.aio.flight import Flights
from imgfs.assembly.given import Opened
from imgfs.assembly.mounting import Mounting
from imgfs.check.plugin import CHECK
from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.encoding import indented_json
from imgfs.execution.plugin import CONTAINERS
from imgfs.figures import exposed
from imgfs.fs.caller import Waiters
from imgfs.fs.node import Shown
from imgfs.fs.statistics import FuseStatistics
from imgfs.fs.subsystems import (
    BlobSubsystems,
    ChainSubsystems,
    ContainerSubsystems,
    ControlSubsystems,
    ImageSubsystems,
    IngestSubsystems,
    Subsystems,
    UserSubsystems,
)
from imgfs.gc.plugin import GC
from imgfs.gc.quota import WriteQuota
from imgfs.gc.space import DiskSpace, SpaceKeeper, SpaceLimits, space_of
from imgfs.images.plugin import CATALOG, NAMES
from imgfs.layers.plugin import LAYERS
from imgfs.leases.plugin import LEASES
from imgfs.plugins.started import RunningPlugins
from imgfs.rescue.rebuild import Rebuilt
from imgfs.rootfs.plugin import ROOTFS, TERMS
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.plugin import CHAINS, SNAPSHOTS, VIEWS
from imgfs.transfer.plugin import PUSH, TRANSFER


def assemble(mounting: Mounting, opened: Opened, running: RunningPlugins) -> Subsystems:
    """Return all subsystems of the tree. Raises NotStarted if a required plugin does not run."""
    statistics, works = FuseStatistics(Waiters(trio.Event())), Flights[None](running.nursery, grace=0, memory=0)
    shown = Shown(os.geteuid(), os.getegid(), time.time_ns())
    room, limits = running.one(GC), mounting.limits
    blob_files, chains = _blob_files(running, shown), _chains(running, shown)
    return Subsystems(
        shown=shown,
        config=mounting.config,
        statistics=statistics,
        space=lambda: _space(room, limits),
        images=_images(running, blob_files, chains, is_resolving=mounting.config.resolve != "registered"),
        blob_files=blob_files,
        ingests=_ingests(running, shown, WriteQuota(room, limits)),
        chains=chains,
        users=_users(running, shown, works),
        containers=_containers(running, shown, works),
        control=_control(mounting, opened, running, chains, statistics),
    )


def _blob_files(running: RunningPlugins, shown: Shown) -> BlobSubsystems:
    transfer = running.one(TRANSFER)
    return BlobSubsystems(
        shown=shown,
        failures=transfer.failures,
        content=running.one(CONTENT),
        catalog=running.one(CATALOG),
        blobs=transfer.blobs,
        transfers=transfer.transfers,
    )


def _ingests(running: RunningPlugins, shown: Shown, allowance: WriteQuota) -> IngestSubsystems:
    transfer = running.one(TRANSFER)
    return IngestSubsystems(
        shown=shown,
        failures=transfer.failures,
        ingests=running.one(INGESTS),
        allowance=allowance,
        blobs=transfer.blobs,
    )


def _chains(running: RunningPlugins, shown: Shown) -> ChainSubsystems:
    transfer = running.one(TRANSFER)
    return ChainSubsystems(
        shown=shown,
        failures=transfer.failures,
        graph=running.one(CHAINS),
        layers=running.one(LAYERS),
        images=transfer.images,
        views=running.one(VIEWS),
        rootfs=running.one(ROOTFS),
        snapshots=running.one(SNAPSHOTS),
        owner=None if os.geteuid() == 0 else (os.geteuid(), os.getegid()),
    )


def _users(running: RunningPlugins, shown: Shown, works: Flights[None]) -> UserSubsystems:
    return UserSubsystems(
        shown=shown,
        failures=running.one(TRANSFER).failures,
        snapshots=running.one(SNAPSHOTS),
        rootfs=running.one(ROOTFS),
        containers=running.one(CONTAINERS),
        works=works,
    )


def _containers(running: RunningPlugins, shown: Shown, works: Flights[None]) -> ContainerSubsystems:
    return ContainerSubsystems(
        shown=shown,
        failures=running.one(TRANSFER).failures,
        containers=running.one(CONTAINERS),
        snapshots=running.one(SNAPSHOTS),
        rootfs=running.one(ROOTFS),
        works=works,
    )


def _images(
    running: RunningPlugins, blob_files: BlobSubsystems, chains: ChainSubsystems, *, is_resolving: bool
) -> ImageSubsystems:
    transfer = running.one(TRANSFER)
    return ImageSubsystems(
        shown=chains.shown,
        failures=transfer.failures,
        names=running.one(NAMES),
        resolver=transfer.resolver,
        is_resolving=is_resolving,
        listings=transfer.listings,
        documents=transfer.documents,
        images=transfer.images,
        status=transfer.status,
        referrers=transfer.referrers,
        pushes=running.one(PUSH),
        blob_files=blob_files,
        chains=chains,
    )


def _control(
    mounting: Mounting, opened: Opened, running: RunningPlugins, chains: ChainSubsystems, statistics: FuseStatistics
) -> ControlSubsystems:
    started, terms, transfer = chains.shown.started, running.one(TERMS), running.one(TRANSFER)
    is_read_only = running.one(CONTENT).is_read_only
    return ControlSubsystems(
        shown=chains.shown,
        state=mounting.state,
        settings=mounting.settings.render({name: report.settings for name, report in running.reports.items()}),
        plugins=running.reports,
        describe=lambda: _describe(mounting, started, terms, opened.rebuilt, is_read_only=is_read_only),
        metrics=lambda: exposed(running, statistics, started),
        collector=running.one(GC).collector,
        leases=running.one(LEASES).leases,
        mender=running.one(CHECK),
        transfers=transfer.transfers,
        running=transfer.running,
        containers=running.one(CONTAINERS),
        chains=chains,
    )


async def _space(room: SpaceKeeper, limits: SpaceLimits) -> DiskSpace:
    """Return what `df` shows for the tree. Raises StorageFailed."""
    return space_of(await room.disk(), limits, await room.used() if limits.quota else 0)


def _describe(mounting: Mounting, started: int, terms: Terms, rebuilt: Rebuilt | None, *, is_read_only: bool) -> bytes:
    """Return the facts as JSON.

    `started` is in ns since the epoch; `rebuilt` says how the database was rebuilt, if it was.
    """
    state = {
        "version": __version__,
        "pid": os.getpid(),
        "mountpoint": printable(mounting.mountpoint),
        "state": printable(mounting.state),
        "read_only": is_read_only or mounting.is_read_only,
        "started": started,
        "platform": str(mounting.config.chosen_platform),
        "access": mounting.config.access,
        "views": "kernel" if terms.is_root and terms.capabilities.erofs else "fuse",
        "trusted": terms.trusted,
        "database": asdict(rebuilt) if rebuilt else "whole",
        "mounts": {name: one.reason or "works" for name, one in terms.capabilities.by_name().items()},
    }
    return indented_json(state)


def printable(path: Path) -> str:
    """Return the path as valid text. Bytes that are not UTF-8 become escapes."""
    return bytes(path).decode(errors="backslashreplace")
