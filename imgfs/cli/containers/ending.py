"""`imgfs kill`, `wait` and `delete`: end a container and report its exit status."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import click

from imgfs.cli.containers.lookup import (
    ContainerState,
    complete_container,
    existing,
    existing_or_deleted,
    has_ended,
    last_state,
    record_of,
    state,
    wait_end,
)
from imgfs.cli.failure import Failure, from_os_error, raise_first
from imgfs.cli.options import Command, mountpoint_option
from imgfs.cli.tree import Tree
from imgfs.errors import Invalid, NotFound
from imgfs.execution import signals
from imgfs.execution.control import Connection

UNKNOWN = 125
"""The exit code of `delete` if the container's exit status is unknown, as for all failures of imgfs itself."""


@click.command(cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_container)
@click.option(
    "-s", "--signal", "name", metavar="SIGNAL", help="A name or a number. Default: the image's StopSignal, TERM."
)
@click.option("-a", "--all", "everybody", is_flag=True, help="Signal every process of the container.")
@mountpoint_option
def kill(id: str, name: str | None, *, everybody: bool, mountpoint: str) -> None:
    """Send a signal to the first process of a container.

    The kernel does not deliver a signal for which the first process has no handler, except KILL and STOP.
    """
    tree = Tree.open(mountpoint)
    one = existing(tree, id)
    number = signal_number(name if name is not None else state(tree, one).get("stop_signal") or "TERM")
    send_signal(tree, one, number, everybody=everybody)


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete_container)
@mountpoint_option
def wait(ids: tuple[str, ...], mountpoint: str) -> None:
    """Wait for containers to end and print their statuses.

    The status of a container that was killed is 128 + the signal number. For a deleted container the recorded status is
    printed.
    """
    tree = Tree.open(mountpoint)
    raise_first([failure for id in ids if (failure := _tell(wait_end(tree, existing_or_deleted(tree, id))))])


@click.command(cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_container)
@click.option("-f", "--force", is_flag=True, help="End it with SIGKILL if it runs.")
@mountpoint_option
def delete(id: str, *, force: bool, mountpoint: str) -> None:
    """Delete a container and its files.

    The command prints the container's exit status and exits with it, or with 125 if it is unknown. It fails with exit
    code 7 while the container runs or a process uses its files. The exit status is kept in
    .imgfs/deleted/containers/ID; deleting a deleted container prints it again.
    """
    tree = Tree.open(mountpoint)
    one = existing_or_deleted(tree, id)
    if os.path.lexists(tree.container(one)):
        if force:
            _end(tree, one)
        _delete(tree, one)
    found = last_state(tree, one)
    failure = _tell(found)
    if failure is not None:
        failure.show()
        raise click.exceptions.Exit(UNKNOWN)
    raise click.exceptions.Exit(found.get("exit_code") or 0)


def signal_number(text: str) -> int:
    """Return the number of a signal from any spelling that an image may use. Raises Failure if it is unknown."""
    try:
        return signals.signal_number(text, "signal")
    except Invalid:
        raise Failure(f"signal {text}: is unknown; `kill -l` lists the signals", errno.EINVAL) from None


def _end(tree: Tree, id: str) -> None:
    if has_ended(state(tree, id)):
        return
    try:
        send_signal(tree, id, signal.SIGKILL, everybody=True)
    except Failure:
        if not has_ended(last_state(tree, id)):
            raise
    wait_end(tree, id)


def _delete(tree: Tree, id: str) -> None:
    try:
        os.rmdir(tree.container(id))
    except FileNotFoundError:
        return  # another process has deleted it; its recorded status is printed
    except OSError as error:
        raise tree.container_failure(error, id) from None


def _tell(found: ContainerState) -> Failure | None:
    """Print the exit status. Returns a Failure if it is unknown."""
    code = found.get("exit_code")
    click.echo("unknown" if code is None else code)
    if code is not None:
        return None
    return Failure(f"container {found['id']}: {found.get('reason') or 'its exit status is unknown'}", errno.EIO)


def send_signal(tree: Tree, id: str, number: int, *, everybody: bool = False) -> None:
    """Send a signal to the first process of a container, or to all. Raises Failure if the container is not running."""
    found = state(tree, id)
    record = record_of(found)
    if has_ended(found) or record is None:
        raise Failure(f"container {id}: has ended; no process can receive a signal", errno.ESRCH)
    try:
        with Connection.open(Path(record, "control")) as supervisor:
            supervisor.ask({"do": "kill", "signal": number, "all": everybody})
    except NotFound:
        _send_directly(tree, id, found, number)


def _send_directly(tree: Tree, id: str, found: ContainerState, number: int) -> None:
    pid = found.get("pid")
    try:
        process = os.pidfd_open(pid) if pid is not None else None
    except ProcessLookupError:
        process = None
    if process is None:
        raise Failure(f"container {id}: has just ended", errno.ESRCH)
    try:
        # Read the pid again after pidfd_open: if it is unchanged, the pidfd is not that of a reused pid.
        if state(tree, id).get("pid") == pid:
            signal.pidfd_send_signal(process, number)
    except OSError as error:
        raise from_os_error(error, f"container {id}") from None
    finally:
        os.close(process)
