"""The daemon's life: lock the state directory, mount the tree, serve until told to stop, unmount everything.

Owns the order of these steps. The objects are made by plugins (`assembly/`); requests are handled in `fs/`.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from imgfs import __version__
from imgfs.assembly.given import Opened, given
from imgfs.assembly.mounting import Mounting
from imgfs.assembly.tables import TABLES
from imgfs.assembly.tree import assemble, printable
from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.disk.durable import make_directory, open_directory
from imgfs.errors import Busy, ImgfsError, Invalid, from_os
from imgfs.execution.forkserver import run_fork_server
from imgfs.fs.containers.deleting import finish_deletions
from imgfs.fs.operations import Operations
from imgfs.fs.session import FuseSession
from imgfs.fs.subsystems import ContainerSubsystems
from imgfs.gc.plugin import GC
from imgfs.kernel.fuse import FuseMount
from imgfs.kernel.guard import guarded
from imgfs.kernel.mounts import is_dead, is_ours, mount_at, mounts, unmount
from imgfs.lock import holder, locked
from imgfs.log import configure_log
from imgfs.notify import Manager
from imgfs.plugins.finding import find_plugins
from imgfs.plugins.started import RunningPlugins
from imgfs.plugins.starting import started
from imgfs.registry.plugin import REGISTRY
from imgfs.rescue.keeper import Keeper
from imgfs.rescue.rebuild import open_database, open_frozen
from imgfs.rootfs.plugin import ROOTFS
from imgfs.snapshots.plugin import SNAPSHOTS
from imgfs.state import is_read_only

_SWITCH_INTERVAL = 0.001
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GC_SECONDS = 60.0
"""Seconds between two checks of the space limits."""
_log = logging.getLogger("imgfs.daemon")


def run(mounting: Mounting, ready: Callable[[], None]) -> None:
    """Serve `mounting` until a signal (TERM, INT, HUP) or an unmount by another program.

    Calls `ready` when the tree answers. With `foreground`, it also notifies the service manager that started this
    process.

    Raises Busy if another daemon holds the state directory or the mountpoint is in use; Invalid, NotPermitted, NoSpace,
    StorageFailed. No mount remains after an error.
    """
    manager = Manager()
    if mounting.foreground:
        manager = Manager.of(os.environ)
        faulthandler.enable()  # a watchdog ends a hanging daemon by SIGABRT; the journal then has the traceback
    try:
        _run(mounting, ready, manager)
    except ImgfsError as error:
        manager.failed(error)
        raise


def _run(mounting: Mounting, ready: Callable[[], None], manager: Manager) -> None:
    _set_limits()
    # With 100,000 nodes in the tree, garbage collection at the default thresholds is expensive. Other threads need the
    # interpreter while the event loop is busy, so they may take it after a short interval.
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _check(mounting)
    os.umask(0o077)  # set after _check, so that other users can pass new directories above the mountpoint
    _refuse_unmounted(mounting.state)
    with locked(mounting.state, f"at {printable(mounting.mountpoint)}"):
        configure_log(
            mounting.state / "log",
            mounting.config.log_level,
            mounting.config.log_bytes,
            to_stderr=mounting.foreground,
        )
        with _opening(mounting.state):
            is_frozen = not open_directory(mounting.state) or is_read_only(mounting.state)
        _clear_stale(str(mounting.mountpoint))
        facts = {"version": __version__, "pid": os.getpid(), "mountpoint": printable(mounting.mountpoint)}
        _log.info("starting", extra=facts)
        if is_frozen:
            _log.warning("the state directory is read-only: stored content is served, every change is refused")
        try:
            with guarded(str(mounting.mountpoint)):
                trio.run(partial(_serve, mounting, ready, manager, is_frozen=is_frozen))
        except ImgfsError:
            raise
        except Exception:
            # In the background, stderr is not visible, so the traceback goes to the log.
            _log.exception("the daemon ended unexpectedly")
            raise


async def _serve(mounting: Mounting, ready: Callable[[], None], manager: Manager, *, is_frozen: bool) -> None:
    config = mounting.config
    if is_frozen:
        database, rebuilt = open_frozen(mounting.state, TABLES), None
    else:
        database, rebuilt = open_database(mounting.state, TABLES)
    try:
        with _opening(mounting.state):
            opened = Opened(database, rebuilt, Keeper(mounting.state, database, TABLES.kept), is_frozen)
            ground = given(mounting, opened)
        off, places = config.disabled_plugins, mounting.settings.origins
        async with started(find_plugins(off), config.plugins, off, mounting.state, ground, places) as running:
            await _show(mounting, opened, running, ready, manager)
    finally:
        database.close()


async def _show(
    mounting: Mounting, opened: Opened, running: RunningPlugins, ready: Callable[[], None], manager: Manager
) -> None:
    """Mount the tree, serve it until the end, then make pending data durable."""
    signalled, answering = trio.Event(), trio.Event()

    def answers() -> None:
        answering.set()
        ready()

    subsystems = assemble(mounting, opened, running)
    operations, rootfs, nursery = Operations(subsystems), running.one(ROOTFS), running.nursery
    ending = subsystems.statistics.waiters.ending
    with FuseSession(operations, str(mounting.mountpoint), _fuse_mount(mounting)) as session:
        nursery.start_soon(manager.attend, answering, ending, printable(mounting.mountpoint))
        nursery.start_soon(_set_on_signal, signalled)
        nursery.start_soon(trio.to_thread.run_sync, running.one(REGISTRY).warm)
        nursery.start_soon(rootfs.expire, mounting.config.view_idle_seconds)
        if not opened.is_frozen:
            nursery.start_soon(_finish_removals, subsystems.containers, running)
            nursery.start_soon(running.one(SNAPSHOTS).follow_removals)
            nursery.start_soon(rootfs.follow_losses)
            nursery.start_soon(running.one(GC).watch, mounting.limits, GC_SECONDS)
            nursery.start_soon(opened.keeper.watch)
            if os.geteuid() == 0:  # only root starts containers
                nursery.start_soon(run_fork_server, mounting.state, mounting.mountpoint)
        await session.serve(signalled, ending, answers, rootfs.clear)
        with trio.CancelScope(shield=True):
            await running.one(INGESTS).sync()
            if not opened.is_frozen:
                await opened.keeper.save_logged()


def _fuse_mount(mounting: Mounting) -> FuseMount:
    """Return how to mount the tree. Other users may enter if `access` allows any."""
    is_shared = os.geteuid() == 0 or not mounting.config.is_private
    return FuseMount(is_shared, mounting.is_trusted, mounting.is_read_only, mounting.source)


async def _finish_removals(containers: ContainerSubsystems, running: RunningPlugins) -> None:
    """Finish removals that an earlier daemon or a killed process left unfinished. Runs in the background."""
    snapshots, content = running.one(SNAPSHOTS), running.one(CONTENT)
    for work in (partial(finish_deletions, containers), snapshots.sweep, content.sweep_labels):
        try:
            await work()
        except ImgfsError as error:
            _log.warning("clean-up is incomplete; the next start continues it", extra={"reason": error.message})


@contextmanager
def _opening(state: Path) -> Generator[None]:
    """Convert an OSError of the state directory into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise from_os(error, os.fsdecode(error.filename or state)) from None


async def _set_on_signal(signalled: trio.Event) -> None:
    for number in _ENDING:
        # trio restores this handler when the receiver closes. A second signal must not kill a daemon that is stopping.
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(*_ENDING) as signals:
        async for _ in signals:
            signalled.set()


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


def _refuse_unmounted(state: Path) -> None:
    """Raise Busy if another daemon holds `state` although its tree is unmounted in this mount namespace.

    The error says how to end that daemon.
    """
    held = holder(state)
    if held and held.mountpoint and not any(printable(Path(one.mountpoint)) == held.mountpoint for one in mounts()):
        raise Busy(
            f"{state}: is in use by {held.told}, whose tree is unmounted: that daemon runs on while a file of the "
            "tree is open or another mount of it exists (in any mount namespace); end those users, or kill that pid"
        )


def _clear_stale(mountpoint: str) -> None:
    """Detach the dead mount of a killed daemon. Raises Busy if a live filesystem is mounted at `mountpoint`."""
    while mount_at(mountpoint):
        if not is_dead(mountpoint):
            if not is_ours(mountpoint):
                raise Busy(f"{mountpoint}: another filesystem is mounted there; choose another mountpoint")
            raise Busy(f"{mountpoint}: imgfs is already mounted there; `imgfs umount {mountpoint}` unmounts it")
        unmount(mountpoint, detach=True)


def _set_limits() -> None:
    """Raise the limit of open files to its maximum, and disable core dumps: a core would contain logins and tokens.

    A limit of 1 also keeps the kernel from piping a core to a program (core(5)); a limit of 0 does not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))
