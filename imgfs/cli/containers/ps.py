"""`imgfs ps`: list the containers and their statuses."""

from __future__ import annotations

import errno
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TextIO, cast

import click

from imgfs.cli.array import array_text
from imgfs.cli.containers.lookup import ContainerState, has_ended
from imgfs.cli.failure import Failure, from_os_error
from imgfs.cli.options import Command, format_option, mountpoint_option
from imgfs.cli.table import local_time, table_lines
from imgfs.cli.tree import Tree

_COMMAND_MAX = 40


@click.command(cls=Command)
@mountpoint_option
@format_option("table")
@click.option("-a", "--all", "everything", is_flag=True, help="Also list ended containers.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the IDs, one per line.")
def ps(mountpoint: str, form: str, *, everything: bool, quiet: bool) -> None:
    """List the running containers.

    STATUS shows since when a container runs, or how it ended. JSON is an array of the containers' state.json.
    """
    found = _states(Tree.open(mountpoint), everything=everything)
    if quiet:
        _print(f"{one['id']}\n" for one in found)
    elif form == "json":
        _print(array_text(found), end="\n")
    else:
        rows = [_row(one) for one in found]
        _print(f"{line}\n" for line in table_lines(("ID", "IMAGE", "COMMAND", "CREATED", "STATUS"), rows))


def _print(pieces: Iterable[str], end: str = "") -> None:
    """Write pieces to stdout, buffered: click.echo would make one write(2) for each of possibly 100,000 lines."""
    out = cast("TextIO | None", sys.stdout)
    if out is None:  # the shell has closed it
        return
    out.writelines(pieces)
    out.write(end)
    out.flush()


def _states(tree: Tree, *, everything: bool) -> Iterator[ContainerState]:
    try:
        for one in tree.read_json_array(tree.container_states(running=not everything)):
            if "error" in one:  # a damaged container does not prevent the listing of the others
                Failure(one["error"], errno.EIO).show()
            else:
                yield one
    except OSError as error:
        raise from_os_error(error, "containers", None, tree.log) from None


def _row(one: ContainerState) -> tuple[str, ...]:
    command = shlex.join(one["args"])
    short = command if len(command) <= _COMMAND_MAX else f"{command[: _COMMAND_MAX - 1]}…"
    return one["id"], one["image"], short, _moment(one["created"]), _status(one)


def _status(one: ContainerState) -> str:
    if one["status"] == "running":
        return f"running since {_moment(one['started'])}"
    if not has_ended(one):
        return one["status"]
    number, memory = one.get("signal"), ", out of memory" if one.get("oom") else ""
    if number is not None:
        how = f"killed by {_name(number)}"
    else:
        how = "ended, status unknown" if one.get("exit_code") is None else f"exited with {one['exit_code']}"
    return f"{how}{memory}, {_moment(one['finished'])}" if one.get("finished") else f"{how}{memory}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _moment(text: str | None) -> str:
    """Format an RFC 3339 time to the minute, in the local time zone."""
    try:
        return local_time(int(datetime.fromisoformat(text or "").timestamp()) * 10**9)
    except ValueError:
        return "-"
