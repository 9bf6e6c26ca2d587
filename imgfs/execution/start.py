"""Starts a container: creates the snapshot, bundle and record, and hands the rest to a supervisor.

A library of blocking calls. A start that fails or is killed leaves nothing: the record has a temporary name and names
its snapshot before the snapshot exists, and the process that makes it holds its lock, so `removal.remove_abandoned`
finds what a killed process left.
"""

from __future__ import annotations

import errno
import os
import select
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from imgfs.disk.durable import fsync_path, write_file
from imgfs.errors import (
    AlreadyExists,
    Busy,
    ImgfsError,
    NotFound,
    StorageFailed,
    Unsupported,
    from_os,
)
from imgfs.execution.bundle.overrides import Overrides
from imgfs.execution.bundle.process import (
    ImageProcess,
    Process,
    arguments,
    environment,
    parse_process,
    working_directory,
)
from imgfs.execution.bundle.rootfs import make_directory_in, read_file_in
from imgfs.execution.bundle.seccomp import DEFAULT, filter_of
from imgfs.execution.bundle.spec import CAPABILITIES, OPEN_FILES, SpecSettings, runtime_spec
from imgfs.execution.bundle.users import resolve_user
from imgfs.execution.control import Connection, Refused, open_files_max
from imgfs.execution.launch import NONE, IdleSupervisor, Job, check_caller
from imgfs.execution.records.record import Container, ContainerRecord, ContainerStatus, InstalledRuntime, encode, now
from imgfs.execution.records.records import ContainerRecords, new_key
from imgfs.execution.removal import discard_runtime, remove_unstarted
from imgfs.oci.platform import Platform, choose, local_platform

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_MACHINES = {"amd64": "x86_64", "386": "i386", "arm64": "aarch64", "ppc64le": "ppc64le", "s390x": "s390x"}
_HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")
_STOP_SIGNAL = "SIGTERM"


class Site(msgspec.Struct, frozen=True):
    """Where containers are started: a mounted tree, its state directory, and the daemon's settings."""

    mountpoint: str
    state: Path
    runtimes: Sequence[InstalledRuntime]
    """The runtimes that may be used, the preferred one first."""
    log_bytes: int
    deadline: float
    seccomp: str = DEFAULT
    """The argument of `filter_of`."""

    def rootfs(self, key: str) -> str:
        """Return the path of the files of an active snapshot."""
        return f"{self.mountpoint}/snapshots/active/{key}/rootfs"


class PulledImage(msgspec.Struct, frozen=True):
    """An image whose content is stored completely."""

    name: str
    digest: str
    chain: str
    config: bytes


class StartOptions(msgspec.Struct, frozen=True):
    """What happens to the container, besides what runs in it."""

    id: str | None = None
    detach: bool = False
    remove: bool = False


class CallerStreams(msgspec.Struct, frozen=True):
    """Descriptors that the caller keeps owning. `terminal` is a stream socket that replaces the other three."""

    stdin: int = NONE
    stdout: int = NONE
    stderr: int = NONE
    terminal: int = NONE
    size: tuple[int, int] = (0, 0)
    interrupted: int = NONE
    """If this becomes readable before the program runs, the start is cancelled."""


class _SupervisorDied(StorageFailed):
    """A supervisor exited without an answer."""


class StartedContainer(msgspec.Struct, frozen=True):
    """A container whose program runs. `control` reports its end. Closing `control` ends nothing."""

    id: str
    control: Connection
    supervisor: subprocess.Popen[bytes] | None
    """Set if the supervisor is a program of its own, and not forked."""
    notes: tuple[str, ...]


def new_id() -> str:
    """Return an unused random ID."""
    return os.urandom(6).hex()


def start_new(
    site: Site,
    source: PulledImage,
    wish: Overrides,
    manner: StartOptions,
    attached: CallerStreams,
    waiting: IdleSupervisor | None = None,
) -> StartedContainer:
    """Create a container and start it. Returns when its program runs. Uses the supervisor `waiting`, or starts one.

    Raises AlreadyExists if the ID is taken, Invalid and NotFound for errors in the image or the overrides, Unsupported
    for an image of another architecture, NoSpace, StorageFailed, and Refused with the runtime's message. After an
    error, and after a kill of the caller, there is no container.
    """
    check_caller()
    wish.check()
    config, image = parse_process(source.config)
    check_platform(config.platform, source.name)
    words = arguments(image, wish, source.name)
    id = new_id() if manner.id is None else manner.id
    records = ContainerRecords(site.state)
    if records.find(id).path.exists():
        raise _exists(id)
    container = Container(
        id=id,
        image=source.name,
        digest=source.digest,
        platform=str(config.platform),
        chain=source.chain,
        snapshot=new_key(id),
        created=now(),
        args=list(words),
        tty=wish.terminal,
        detach=manner.detach,
        remove=manner.remove,
        runtime=site.runtimes[0],
        stop_signal=image.stop_signal or _STOP_SIGNAL,
        labels=image.labels,
        mountpoint=site.mountpoint,
    )
    record, lock, root = _create(site, records, container, image, wish)
    try:
        is_logged = manner.detach or not wish.interactive
        job = _job(site, container, record, (lock, root), attached, is_logged=is_logged)
        return _run_supervisor(record, job, attached.interrupted, waiting)
    except _SupervisorDied:
        _clean_up(records, record, container)
        raise
    finally:
        os.close(lock)


def start_again(
    site: Site, id: str, attached: CallerStreams, waiting: IdleSupervisor | None = None
) -> StartedContainer:
    """Start an ended container again, on its snapshot as it is now.

    Raises NotFound, Busy while the container runs, OSError, and the errors of `start_new`. After an error the container
    is unchanged.
    """
    check_caller()
    record = ContainerRecords(site.state).get(id)
    lock = record.take_lock()
    try:
        container = record.container()
        if record.status().status != "stopped":
            raise Busy(f"container {id}: is running")
        if container.mountpoint != site.mountpoint:  # the tree was mounted elsewhere when the container was made
            container = msgspec.structs.replace(container, mountpoint=site.mountpoint)
            record.write_container(container)
        root = _open_rootfs(site, container.snapshot)
        job = _job(site, container, record, (lock, root), attached, is_logged=True)
        return _run_supervisor(record, job, attached.interrupted, waiting)
    finally:
        os.close(lock)


def check_platform(platform: Platform, subject: str) -> None:
    """Raise Unsupported unless this machine runs that platform, natively or by an emulator (binfmt_misc)."""
    here = local_platform()
    if choose(here, [platform]) is not None or (platform.os == here.os and _is_emulated(platform.architecture)):
        return
    cure = "get another platform of it"
    if platform.os == here.os:
        cure += ", or register an emulator (qemu-user-static)"
    raise Unsupported(f"{subject}: is for {platform}, and this machine is {here}; {cure}")


def _is_emulated(architecture: str) -> bool:
    name = _MACHINES.get(architecture, architecture)
    try:
        return (_BINFMT / f"qemu-{name}").read_text().startswith("enabled")
    except OSError:
        return False


def _create(
    site: Site, records: ContainerRecords, container: Container, image: ImageProcess, wish: Overrides
) -> tuple[ContainerRecord, int, int]:
    """Create the complete record under its temporary name. Return it, its lock and its open rootfs.

    Raises the errors of `start_new`.
    """
    lock = root = NONE
    record: ContainerRecord | None = None
    try:
        record = records.make()
        lock = record.take_lock()
        record.write_container(container)
        _prepare(site, container)
        root = _open_rootfs(site, container.snapshot)
        spec = _spec(site, records.find(container.id), container, image, wish, root)
        record.bundle.mkdir(mode=0o700)
        record.rootfs.mkdir(mode=0o700)
        write_file(record.config, encode(spec))
        record.write_status(ContainerStatus(status="created"))
        fsync_path(record.path)
        return record, lock, root
    except BaseException as error:
        if root != NONE:
            os.close(root)
        if record is not None:
            with suppress(ImgfsError, OSError):
                remove_unstarted(records, record, container)
        if lock != NONE:
            os.close(lock)
        if isinstance(error, OSError):
            raise from_os(error, str(error.filename or records.directory)) from None
        raise


def _prepare(site: Site, container: Container) -> None:
    """Create the active snapshot with its parent. Raises StorageFailed and the errors of the mount."""
    directory = f"{site.mountpoint}/snapshots/active/{container.snapshot}"
    try:
        os.mkdir(directory)
        os.symlink(f"../../{container.chain}", f"{directory}/parent")
    except OSError as error:
        raise _mount_error(error, container.snapshot, directory) from None


def _open_rootfs(site: Site, key: str) -> int:
    """Make the daemon mount the rootfs, which a stat of it does. Return the rootfs, opened with O_PATH.

    Raises the errors of `_prepare`.
    """
    try:
        os.stat(site.rootfs(key))
        return os.open(site.rootfs(key), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _mount_error(error, key, f"{site.mountpoint}/snapshots/active/{key}") from None


def _spec(
    site: Site, named: ContainerRecord, container: Container, image: ImageProcess, wish: Overrides, root: int
) -> object:
    """Return config.json. The user comes from files in the rootfs. `named` is the record under its final name."""
    host_files = tuple(path for path in _HOST_FILES if os.path.exists(path)) if wish.network == "host" else ()
    setting = SpecSettings(
        id=container.id,
        key=container.snapshot,
        rootfs=str(named.rootfs),
        read_only=wish.read_only,
        network=wish.network,
        volumes=wish.volumes,
        host_files=host_files,
        memory=wish.memory,
        open_files=min(OPEN_FILES, open_files_max()),
        labels=container.labels,
        seccomp=filter_of(site.seccomp, CAPABILITIES),
    )
    cwd = working_directory(image, wish)
    user = resolve_user(
        image.user if wish.user is None else wish.user,
        read_file_in(root, "etc/passwd"),
        read_file_in(root, "etc/group"),
    )
    make_directory_in(root, cwd, "working directory")
    env = environment(image, wish, user, setting.hostname)
    return runtime_spec(Process(tuple(container.args), env, cwd, user, wish.terminal), setting)


def _mount_error(error: OSError, key: str, directory: str) -> ImgfsError:
    """Return the error of the mount, with the daemon's message if the daemon left one."""
    reason = os.strerror(error.errno or errno.EIO)
    with suppress(OSError):
        reason = os.getxattr(directory, "user.imgfs.error").decode(errors="replace")
    return Refused(f"snapshot active/{key}: {reason}", error.errno or errno.EIO)


def _job(
    site: Site,
    container: Container,
    record: ContainerRecord,
    held: tuple[int, int],
    attached: CallerStreams,
    *,
    is_logged: bool,
) -> Job:
    """`held` are the record's lock and the open rootfs."""
    is_new = record.path.name != container.id
    return Job(
        state=str(site.state),
        id=container.id,
        record=record.path.name,
        lock=held[0],
        rootfs=held[1],
        stdin=attached.stdin,
        stdout=attached.stdout,
        stderr=attached.stderr,
        terminal=attached.terminal,
        size=attached.size,
        runtimes=list(site.runtimes) if is_new else [container.runtime],
        deadline=site.deadline,
        log_bytes=site.log_bytes,
        is_logged=is_logged,
    )


def _run_supervisor(
    record: ContainerRecord, job: Job, interrupted: int, waiting: IdleSupervisor | None
) -> StartedContainer:
    """Give a supervisor its job and wait until the program runs. Closes the job's rootfs."""
    try:
        chosen = waiting or IdleSupervisor(record.container().mountpoint)
        control = chosen.control
        _send(control, job)
    finally:
        os.close(job.rootfs)  # an open rootfs makes the container busy, and its deletion fails
    try:
        _wait_for_answer(control, interrupted)
        first = control.answer()
    except BaseException as error:
        control.close()  # a supervisor that has not begun the program does not begin it any more
        if isinstance(error, NotFound | OSError):
            raise _supervisor_died(job) from None
        raise
    return StartedContainer(job.id, control, chosen.process, tuple(str(note) for note in first.get("notes", ())))


def _send(control: Connection, job: Job) -> None:
    """Send the job. Raises _SupervisorDied."""
    try:
        control.send_files(*job.encode())
    except OSError:
        control.close()
        raise _supervisor_died(job) from None


def _supervisor_died(job: Job) -> _SupervisorDied:
    return _SupervisorDied(f"container {job.id}: its supervisor exited unexpectedly; see the kernel log")


def _wait_for_answer(control: Connection, interrupted: int) -> None:
    """Wait for an answer, and tell the supervisor to cancel if the caller is interrupted.

    The supervisor always answers with the true result.
    """
    waiting = select.poll()
    for descriptor in {control.fileno(), interrupted} - {NONE}:
        waiting.register(descriptor, select.POLLIN)
    if control.fileno() not in dict(waiting.poll()):
        control.send({"do": "cancel"})


def _clean_up(records: ContainerRecords, record: ContainerRecord, container: Container) -> None:
    """Clean up for a supervisor that exited before it reported that the program runs. The lock is held."""
    named = records.find(container.id)
    with suppress(ImgfsError, OSError):
        if not record.path.exists() and named.container().created == container.created:
            discard_runtime(records, named, container)
            record = named
        remove_unstarted(records, record, container)


def _exists(id: str) -> AlreadyExists:
    return AlreadyExists(f"container {id}: exists already; choose another --name, or `imgfs delete {id}`")
