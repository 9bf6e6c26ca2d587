"""The daemon: lock the state, introduce the rooms to one another, serve until told to stop, leave nothing mounted."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec
import trio

from imgfs import __version__
from imgfs.aio.gather import plain_nursery
from imgfs.config import Config
from imgfs.content import labels
from imgfs.content.durable import make_directory, sweep
from imgfs.content.ingests import IngestStore
from imgfs.content.store import ContentStore
from imgfs.database import Database
from imgfs.errors import Busy, ImgfsError, Invalid, from_os
from imgfs.fs.node import Shown
from imgfs.fs.operations import Operations
from imgfs.fs.session import Session
from imgfs.fs.subsystems import Subsystems
from imgfs.images import catalog, names
from imgfs.kernel.disk import era, sync_filesystem
from imgfs.kernel.mounts import is_dead, is_ours, mount_at, unmount
from imgfs.kernel.probe import Capabilities, Capability, probe
from imgfs.layers.store import LayerStore
from imgfs.log import configure_log
from imgfs.registry.client import Registry
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs, Terms
from imgfs.snapshots import graph, rows
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.failures import Failures
from imgfs.transfer.images import Images
from imgfs.transfer.layers import Layers
from imgfs.transfer.progress import Transfers
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.status import StatusReporter

SCHEMAS = (names.SCHEMA, catalog.SCHEMA, graph.SCHEMA, rows.SCHEMA, labels.SCHEMA)
_SWITCH_INTERVAL = 0.001
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


def run(mounting: Mounting, ready: Callable[[], None]) -> None:
    """Serve `mounting` until a signal (TERM, INT, HUP) or an unmount from outside; `ready` is called when it answers.

    Raises Busy (another daemon holds the state, or something is mounted there), Invalid, NotPermitted, NoSpace,
    StorageFailed; then nothing is left mounted.
    """
    _raise_file_limit()
    # Trees of a hundred thousand nodes make the collector's default pace a cost, and threads wait for the loop.
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _check(mounting)
    os.umask(0o077)  # only now: others may have to pass the directories above the mountpoint
    with _locked(mounting):
        configure_log(mounting.state / "log", mounting.config.log_level, to_stderr=mounting.foreground)
        sweep(mounting.state)
        _clear_stale(str(mounting.mountpoint))
        told = {"version": __version__, "pid": os.getpid(), "mountpoint": _told(mounting.mountpoint)}
        _log.info("starting", extra=told)
        try:
            trio.run(_serve, mounting, ready)
        except ImgfsError:
            raise
        except Exception:
            # In the background nobody sees a traceback on stderr.
            _log.exception("the daemon ended unexpectedly")
            raise


async def _serve(mounting: Mounting, ready: Callable[[], None]) -> None:
    signalled, ending = trio.Event(), trio.Event()
    database = Database(mounting.state / "imgfs.db", SCHEMAS)
    layers = LayerStore(mounting.state)
    try:
        async with Registry(plain_http=mounting.config.plain_http) as registry, plain_nursery() as nursery:
            subsystems = _assemble(mounting, database, layers, registry, nursery)
            operations, rootfs = Operations(subsystems, ending), subsystems.rootfs
            is_private, is_trusted = mounting.config.is_private, mounting.is_trusted
            with Session(operations, str(mounting.mountpoint), is_private=is_private, is_trusted=is_trusted) as session:
                nursery.start_soon(_set_on_signal, signalled)
                nursery.start_soon(trio.to_thread.run_sync, registry.warm)
                nursery.start_soon(subsystems.snapshots.sweep)
                nursery.start_soon(subsystems.content.sweep_labels)
                nursery.start_soon(rootfs.expire, mounting.config.view_idle_seconds)
                await session.serve(signalled, ending, ready, rootfs.clear)
                with trio.CancelScope(shield=True):
                    await subsystems.ingests.sync()
            nursery.cancel_scope.cancel()
    finally:
        layers.close()
        database.close()


def _assemble(
    mounting: Mounting, database: Database, layers: LayerStore, registry: Registry, nursery: trio.Nursery
) -> Subsystems:
    started = time.time_ns()
    shown = Shown(os.geteuid(), os.getegid(), started)
    content = ContentStore(mounting.state, labels.Labels(database))
    ingests = IngestStore(content, nursery, era(mounting.state))
    name_table, known = names.Names(database), catalog.Catalog(database)
    chains = graph.SnapshotGraph(database)
    transfers, failures = Transfers(), Failures()
    blobs = Blobs(content, ingests, known, registry, transfers, failures, nursery)
    fetcher = Layers(layers, content, known, registry, transfers, failures, nursery)
    documents = Documents(content, known, blobs, mounting.config.chosen_platform)
    images = Images(documents, blobs, fetcher, chains, content, layers, known, failures)
    views = Views(chains, images, nursery)
    snapshots = SnapshotStore(mounting.state, database, chains, sync_filesystem)
    terms = Terms(
        str(mounting.mountpoint),
        _capabilities(mounting),
        is_root=os.geteuid() == 0,
        trusted=mounting.is_trusted,
        private=mounting.config.is_private,
    )
    rootfs = Rootfs(terms, MetadataImages(mounting.state), chains, views, snapshots, layers, nursery)
    return Subsystems(
        config=mounting.config,
        state=mounting.state,
        shown=shown,
        names=name_table,
        catalog=known,
        content=content,
        ingests=ingests,
        layers=layers,
        graph=chains,
        views=views,
        snapshots=snapshots,
        rootfs=rootfs,
        documents=documents,
        resolver=Resolver(name_table, known, documents, registry, failures, nursery),
        images=images,
        blobs=blobs,
        transfers=transfers,
        failures=failures,
        status=StatusReporter(documents, images, name_table, content, layers, known, transfers, failures),
        metrics=lambda: _metrics(registry, transfers, name_table, content, layers),
        describe=lambda: _describe(mounting, started, terms),
        owner=None if os.geteuid() == 0 else (os.geteuid(), os.getegid()),
    )


async def _set_on_signal(signalled: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for _ in signals:
            signalled.set()


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


def _describe(mounting: Mounting, started: int, terms: Terms) -> bytes:
    state = {
        "version": __version__,
        "pid": os.getpid(),
        "mountpoint": _told(mounting.mountpoint),
        "state": _told(mounting.state),
        "started": started,
        "platform": str(mounting.config.chosen_platform),
        "access": mounting.config.access,
        "views": "kernel" if terms.is_root and terms.capabilities.erofs else "fuse",
        "trusted": terms.trusted,
        "mounts": {name: one.reason or "works" for name, one in _named(terms.capabilities).items()},
    }
    return msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"


def _told(path: Path) -> str:
    """The path as text that any reader takes: bytes that are no UTF-8 are written as escapes."""
    return bytes(path).decode(errors="backslashreplace")


def _metrics(
    registry: Registry, transfers: Transfers, name_table: names.Names, content: ContentStore, layers: LayerStore
) -> str:
    statistics = registry.statistics()
    figures = {
        "imgfs_registry_requests_total": statistics.requests,
        "imgfs_registry_received_bytes_total": statistics.received,
        "imgfs_transfers_completed_total": transfers.completed,
        "imgfs_transfers_running": len(list(transfers)),
        "imgfs_names": len(name_table),
        "imgfs_blobs": len(list(content)),
        "imgfs_layers": len(list(layers)),
    }
    return "".join(
        f"# TYPE {key} {'counter' if key.endswith('_total') else 'gauge'}\n{key} {value}\n"
        for key, value in figures.items()
    )


def _check(mounting: Mounting) -> None:
    mountpoint, state = mounting.mountpoint, mounting.state
    if state == mountpoint or mountpoint in state.parents:
        raise Invalid(f"{state}: the state directory lies below the mountpoint; name another with --state")
    try:
        make_directory(state)
        if not mount_at(str(mountpoint)):
            mountpoint.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error, str(error.filename or state)) from None


@contextmanager
def _locked(mounting: Mounting) -> Generator[None]:
    """One daemon a state directory; the lock goes with the process, however it ends."""
    path = mounting.state / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os(error, str(path)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 4096, 0).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise Busy(f"{mounting.state}: is in use by {holder}; name another state directory with --state") from None
    os.ftruncate(file, 0)
    os.pwrite(file, os.fsencode(f"pid {os.getpid()} at {mounting.mountpoint}\n"), 0)
    try:
        yield
    finally:
        os.close(file)


def _clear_stale(mountpoint: str) -> None:
    """Take away what a killed daemon left; refuse to mount over anything that lives."""
    while mount_at(mountpoint):
        if not is_dead(mountpoint):
            if not is_ours(mountpoint):
                raise Busy(f"{mountpoint}: another filesystem is mounted there; choose another mountpoint")
            raise Busy(f"{mountpoint}: something is mounted there already; `imgfs umount {mountpoint}` takes it away")
        unmount(mountpoint, detach=True)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
