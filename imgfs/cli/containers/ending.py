"""`imgfs kill`, `wait`, `delete`: how a container ends, and what is told of that."""

from __future__ import annotations

import errno
import os
import signal

import click

from imgfs.cli.containers.finding import (
    State,
    complete_container,
    existing,
    existing_or_deleted,
    has_ended,
    last_state,
    state,
    wait_end,
)
from imgfs.cli.containers.signalling import send_signal
from imgfs.cli.failure import Failure, raise_first
from imgfs.cli.options import Command, mountpoint_option
from imgfs.cli.tree import Tree
from imgfs.errors import Invalid
from imgfs.execution import signals

UNKNOWN = 125
"""What `delete` exits with where nobody knows how a container ended: the code of failures that are no container's."""


@click.command(cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_container)
@click.option(
    "-s", "--signal", "name", metavar="SIGNAL", help="A name or a number. Default: the image's StopSignal, TERM."
)
@click.option("-a", "--all", "everybody", is_flag=True, help="To every process of the container.")
@mountpoint_option
def kill(id: str, name: str | None, *, everybody: bool, mountpoint: str) -> None:
    """Send a signal to the first process of a container.

    The kernel keeps from the first process what it has no handler for, but for KILL and STOP.
    """
    tree = Tree.open(mountpoint)
    one = existing(tree, id)
    number = signal_number(name if name is not None else state(tree, one).get("stop_signal") or "TERM")
    send_signal(tree, one, number, everybody=everybody)


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete_container)
@mountpoint_option
def wait(ids: tuple[str, ...], mountpoint: str) -> None:
    """Wait until containers have ended; print how they did.

    The exit status of each, one a line: 128 and the number of the signal for one that was killed. Of one that was
    deleted what is kept of it is told.
    """
    tree = Tree.open(mountpoint)
    raise_first([failure for id in ids if (failure := _tell(wait_end(tree, existing_or_deleted(tree, id))))])


@click.command(cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_container)
@click.option("-f", "--force", is_flag=True, help="End it with SIGKILL if it runs.")
@mountpoint_option
def delete(id: str, *, force: bool, mountpoint: str) -> None:
    """Delete a container and what it wrote.

    Prints its exit status and exits with it; 125 where nobody knows it. Busy (exit code 7) while it runs or somebody is
    in its files. How it ended is kept in .imgfs/deleted/containers/ID, and told again for one that was deleted before.
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
    """The number of a signal, by any of the names that an image may use. Fails for what is none."""
    try:
        return signals.signal_number(text, "signal")
    except Invalid:
        raise Failure(f"signal {text}: there is none of that name; `kill -l` lists them", errno.EINVAL) from None


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
        return  # somebody was faster: what is kept of it is told
    except OSError as error:
        raise tree.container_failure(error, id) from None


def _tell(found: State) -> Failure | None:
    """Print the exit status; a failure where nobody knows it."""
    code = found.get("exit_code")
    click.echo("unknown" if code is None else code)
    if code is not None:
        return None
    return Failure(f"container {found['id']}: {found.get('reason') or 'nobody knows how it ended'}", errno.EIO)
