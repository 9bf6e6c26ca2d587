"""What the daemon brings to its plugins, and what the tree gets of them.

The objects themselves are made by plugins (`imgfs/<room>/plugin.py`), which are found by their entry points.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import trio

from imgfs import __version__
from imgfs.aio.flight import Flights
from imgfs.check.kinds import CHECK
from imgfs.config import Config, Settings
from imgfs.content import labels
from imgfs.content.kinds import CONTENT, ERA, INGESTS, Era
from imgfs.database.database import Database
from imgfs.encoding import indented_json
from imgfs.execution.containers import CONTAINERS
from imgfs.figures import exposed
from imgfs.fs.caller import Waiters
from imgfs.fs.node import Shown
from imgfs.fs.served import Served
from imgfs.fs.subsystems import Subsystems
from imgfs.gc.allowance import Allowance
from imgfs.gc.kinds import GC
from imgfs.gc.limits import Limits
from imgfs.gc.room import Room
from imgfs.gc.space import Space, space_of
from imgfs.images import catalog, names
from imgfs.images.kinds import CATALOG, NAMES
from imgfs.kernel.disk import era
from imgfs.kernel.fuse import SOURCE
from imgfs.kernel.probe import Capabilities, Capability, probe
from imgfs.layers.kinds import LAYERS
from imgfs.leases import clock, store
from imgfs.leases.kinds import LEASES
from imgfs.plugins.program import CONFIG, DATABASE
from imgfs.plugins.running import Given, Running
from imgfs.registry.push import sessions
from imgfs.rescue.keeper import Keeper
from imgfs.rescue.kinds import KEEPER
from imgfs.rescue.kinds import TABLES as TABLES_KIND
from imgfs.rescue.rebuild import Rebuilt, Tables
from imgfs.rescue.relearn import relearn
from imgfs.rootfs.kinds import ROOTFS, TERMS
from imgfs.rootfs.terms import Terms
from imgfs.snapshots import graph, notes, rows
from imgfs.snapshots.kinds import CHAINS, SNAPSHOTS, VIEWS
from imgfs.transfer.kinds import PUSH, TRANSFER

TABLES = Tables(
    schemas=(
        names.SCHEMA,
        catalog.SCHEMA,
        graph.SCHEMA,
        rows.SCHEMA,
        labels.SCHEMA,
        store.SCHEMA,
        clock.SCHEMA,
        sessions.SCHEMA,
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
    settings: Settings
    foreground: bool
    nosuid: bool = False
    """Whether setuid bits and device nodes are off in any case."""
    is_read_only: bool = False
    """Whether the tree takes no change by anybody's hand; what is read still comes in."""
    source: str = SOURCE
    """What the table of mounts says of where the tree is from: by that, mount(8) knows a line of fstab again."""

    @property
    def config(self) -> Config:
        """The options in force."""
        return self.settings.config

    @property
    def is_trusted(self) -> bool:
        """Whether views behave as an unpacked directory does: setuid bits and device nodes work.

        As soon as anybody but root gets in, they do not: any image can hold a setuid shell.
        """
        return self.config.is_private and not self.nosuid


@dataclass(frozen=True, slots=True)
class Opened:
    """The database of the state directory, open; how it was rebuilt, if it was; its copy; whether nothing changes."""

    database: Database
    rebuilt: Rebuilt | None
    keeper: Keeper
    is_frozen: bool


def given(mounting: Mounting, opened: Opened) -> list[Given]:
    """What plugins may require of the daemon itself."""
    return [
        Given(CONFIG, mounting.config),
        Given(DATABASE, opened.database),
        Given(TABLES_KIND, TABLES),
        Given(KEEPER, opened.keeper),
        Given(ERA, Era(era(mounting.state))),
        Given(TERMS, _terms(mounting)),
    ]


def assemble(mounting: Mounting, opened: Opened, running: Running) -> Subsystems:
    """Everything that the tree shows, out of the plugins. Raises NotStarted where one that it needs does not run."""
    started, terms, served = time.time_ns(), running.one(TERMS), Served(Waiters(trio.Event()))
    content, transfer, room = running.one(CONTENT), running.one(TRANSFER), running.one(GC)
    return Subsystems(
        config=mounting.config,
        settings=mounting.settings.render({name: report.settings for name, report in running.reports.items()}),
        state=mounting.state,
        shown=Shown(os.geteuid(), os.getegid(), started),
        plugins=running.reports,
        names=running.one(NAMES),
        catalog=running.one(CATALOG),
        content=content,
        ingests=running.one(INGESTS),
        layers=running.one(LAYERS),
        graph=running.one(CHAINS),
        views=running.one(VIEWS),
        snapshots=running.one(SNAPSHOTS),
        rootfs=running.one(ROOTFS),
        containers=running.one(CONTAINERS),
        leases=running.one(LEASES).leases,
        room=room,
        allowance=Allowance(room, limits_of(mounting.config)),
        mender=running.one(CHECK),
        documents=transfer.documents,
        resolver=transfer.resolver,
        referrers=transfer.referrers,
        listings=transfer.listings,
        images=transfer.images,
        blobs=transfer.blobs,
        transfers=transfer.transfers,
        running=transfer.running,
        pushes=running.one(PUSH),
        failures=transfer.failures,
        status=transfer.status,
        space=lambda: _space(room, limits_of(mounting.config)),
        served=served,
        metrics=lambda: exposed(running, served, started),
        describe=lambda: _describe(mounting, started, terms, opened.rebuilt, is_read_only=content.is_read_only),
        works=Flights(running.nursery, grace=0, memory=0),
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
        read_only=mounting.is_read_only,
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
        "read_only": is_read_only or mounting.is_read_only,
        "started": started,
        "platform": str(mounting.config.chosen_platform),
        "access": mounting.config.access,
        "views": "kernel" if terms.is_root and terms.capabilities.erofs else "fuse",
        "trusted": terms.trusted,
        "database": asdict(rebuilt) if rebuilt else "whole",
        "mounts": {name: one.reason or "works" for name, one in _named(terms.capabilities).items()},
    }
    return indented_json(state)


def told(path: Path) -> str:
    """The path as text that any reader takes: bytes that are no UTF-8 are written as escapes."""
    return bytes(path).decode(errors="backslashreplace")
