"""The daemon: lock the state, serve until told to stop, leave nothing mounted."""

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
from imgfs.assembly.description import told
from imgfs.assembly.given import Opened, given
from imgfs.assembly.mounting import Mounting
from imgfs.assembly.tables import TABLES
from imgfs.assembly.tree import assemble
from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.disk.durable import make_directory, open_directory
from imgfs.errors import Busy, ImgfsError, Invalid, from_os
from imgfs.execution.forkserver import run_fork_server
from imgfs.fs.containers.deleting import finish_deletions
from imgfs.fs.operations import Operations
from imgfs.fs.session import Session
from imgfs.fs.subsystems import ContainerSubsystems
from imgfs.gc.kinds import GC
from imgfs.kernel.fuse import FuseMount
from imgfs.kernel.guard import guarded
from imgfs.kernel.mounts import is_dead, is_ours, mount_at, mounts, unmount
from imgfs.lock import holder, locked
from imgfs.log import configure_log
from imgfs.notify import Manager
from imgfs.plugins.finding import find_plugins
from imgfs.plugins.running import Running
from imgfs.plugins.starting import started
from imgfs.registry.kinds import REGISTRY
from imgfs.rescue.keeper import Keeper
from imgfs.rescue.rebuild import open_database, open_frozen
from imgfs.rootfs.kinds import ROOTFS
from imgfs.snapshots.kinds import SNAPSHOTS
from imgfs.state import is_read_only

_SWITCH_INTERVAL = 0.001
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GC_SECONDS = 60.0
"""How often the daemon looks whether room has to be made."""
_log = logging.getLogger("imgfs.daemon")


def run(mounting: Mounting, ready: Callable[[], None]) -> None:
    """Serve `mounting` until a signal (TERM, INT, HUP) or an unmount from outside; `ready` is called when it answers.

    In front, the service manager that started this process is told the same.

    Raises Busy (another daemon holds the state, or something is mounted there), Invalid, NotPermitted, NoSpace,
    StorageFailed; then nothing is left mounted.
    """
    manager = Manager()
    if mounting.foreground:
        manager = Manager.of(os.environ)
        faulthandler.enable()  # a watchdog ends who hangs by SIGABRT: then the journal has where it hung
    try:
        _run(mounting, ready, manager)
    except ImgfsError as error:
        manager.failed(error)
        raise


def _run(mounting: Mounting, ready: Callable[[], None], manager: Manager) -> None:
    _set_limits()
    # Trees of a hundred thousand nodes make the collector's default pace a cost, and threads wait for the loop.
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _check(mounting)
    os.umask(0o077)  # only now: others may have to pass the directories above the mountpoint
    _refuse_unmounted(mounting.state)
    with locked(mounting.state, f"at {told(mounting.mountpoint)}"):
        configure_log(
            mounting.state / "log",
            mounting.config.log_level,
            mounting.config.log_bytes,
            to_stderr=mounting.foreground,
        )
        with _opening(mounting.state):
            is_frozen = not open_directory(mounting.state) or is_read_only(mounting.state)
        _clear_stale(str(mounting.mountpoint))
        facts = {"version": __version__, "pid": os.getpid(), "mountpoint": told(mounting.mountpoint)}
        _log.info("starting", extra=facts)
        if is_frozen:
            _log.warning("the state directory is read-only: what is here is served, and every change is refused")
        try:
            with guarded(str(mounting.mountpoint)):
                trio.run(partial(_serve, mounting, ready, manager, is_frozen=is_frozen))
        except ImgfsError:
            raise
        except Exception:
            # In the background nobody sees a traceback on stderr.
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
    mounting: Mounting, opened: Opened, running: Running, ready: Callable[[], None], manager: Manager
) -> None:
    """Mount the tree, serve it until it has to end, and make durable what is still to be."""
    signalled, answering = trio.Event(), trio.Event()

    def answers() -> None:
        answering.set()
        ready()

    subsystems = assemble(mounting, opened, running)
    operations, rootfs, nursery = Operations(subsystems), running.one(ROOTFS), running.nursery
    ending = subsystems.served.waiters.ending
    with Session(operations, str(mounting.mountpoint), _fuse_mount(mounting)) as session:
        nursery.start_soon(manager.attend, answering, ending, told(mounting.mountpoint))
        nursery.start_soon(_set_on_signal, signalled)
        nursery.start_soon(trio.to_thread.run_sync, running.one(REGISTRY).warm)
        nursery.start_soon(rootfs.expire, mounting.config.view_idle_seconds)
        if not opened.is_frozen:
            nursery.start_soon(_tidy, subsystems.containers, running)
            nursery.start_soon(running.one(SNAPSHOTS).follow_removals)
            nursery.start_soon(rootfs.follow_losses)
            nursery.start_soon(running.one(GC).watch, mounting.limits, GC_SECONDS)
            nursery.start_soon(opened.keeper.watch)
            if os.geteuid() == 0:  # nobody else starts containers
                nursery.start_soon(run_fork_server, mounting.state, mounting.mountpoint)
        await session.serve(signalled, ending, answers, rootfs.clear)
        with trio.CancelScope(shield=True):
            await running.one(INGESTS).sync()
            if not opened.is_frozen:
                await opened.keeper.save_logged()


def _fuse_mount(mounting: Mounting) -> FuseMount:
    """How the tree is mounted. Others than the daemon's user pass where `access` lets somebody in."""
    is_shared = os.geteuid() == 0 or not mounting.config.is_private
    return FuseMount(is_shared, mounting.is_trusted, mounting.is_read_only, mounting.source)


async def _tidy(containers: ContainerSubsystems, running: Running) -> None:
    """Take away what removals and killed processes left; others need not wait for it."""
    snapshots, content = running.one(SNAPSHOTS), running.one(CONTENT)
    for work in (partial(finish_deletions, containers), snapshots.sweep, content.sweep_labels):
        try:
            await work()
        except ImgfsError as error:
            _log.warning("not all could be tidied up; the next start goes on", extra={"reason": error.message})


@contextmanager
def _opening(state: Path) -> Generator[None]:
    """Say which file of the state directory the disk refuses, instead of an unforeseen end."""
    try:
        yield
    except OSError as error:
        raise from_os(error, os.fsdecode(error.filename or state)) from None


async def _set_on_signal(signalled: trio.Event) -> None:
    for number in _ENDING:
        # What trio puts back when nobody listens any more: a daemon that is ending already must not be killed in it.
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
    """Raise Busy with the cure while a daemon holds `state` whose tree was unmounted, but not by all who use it."""
    held = holder(state)
    if held and held.mountpoint and not any(told(Path(one.mountpoint)) == held.mountpoint for one in mounts()):
        raise Busy(
            f"{state}: is in use by {held.told}, where no tree is mounted now: it goes on while a file in it is open, "
            "or a copy of it is mounted elsewhere or in another mount namespace; end what uses that, or kill that pid"
        )


def _clear_stale(mountpoint: str) -> None:
    """Take away what a killed daemon left; refuse to mount over anything that lives."""
    while mount_at(mountpoint):
        if not is_dead(mountpoint):
            if not is_ours(mountpoint):
                raise Busy(f"{mountpoint}: another filesystem is mounted there; choose another mountpoint")
            raise Busy(f"{mountpoint}: something is mounted there already; `imgfs umount {mountpoint}` takes it away")
        unmount(mountpoint, detach=True)


def _set_limits() -> None:
    """As many open files as may be; and no core, which would hold logins and tokens.

    A limit of 1 keeps the kernel from handing a core to a program as well (core(5)); 0 does not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))
