"""`imgfs ps`: the containers, and what became of them."""

from __future__ import annotations

import errno
import shlex
import signal
from datetime import datetime

import click

from imgfs.cli.containers import State, has_ended
from imgfs.cli.failure import Failure, from_os_error
from imgfs.cli.options import Command, format_option, mountpoint_option
from imgfs.cli.table import local_time, render_json, render_table
from imgfs.cli.tree import Tree

_COMMAND_MAX = 40


@click.command(cls=Command)
@mountpoint_option
@format_option("table")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that have ended too.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids, one a line.")
def ps(mountpoint: str, form: str, *, everything: bool, quiet: bool) -> None:
    """List the containers that run.

    STATUS says since when, or how it ended. JSON is an array of what containers/ID/state.json tells.
    """
    tree = Tree.open(mountpoint)
    found = _states(tree, everything=everything)
    if quiet:
        for one in found:
            click.echo(one["id"])
    elif form == "json":
        click.echo(render_json(found))
    else:
        click.echo(render_table(("ID", "IMAGE", "COMMAND", "CREATED", "STATUS"), [_row(one) for one in found]))


def _states(tree: Tree, *, everything: bool) -> list[State]:
    try:
        states = tree.read_json(tree.container_states(running=not everything))
    except OSError as error:
        raise from_os_error(error, "containers", None, tree.log) from None
    for one in states:
        if "error" in one:  # it keeps nobody from seeing the others
            Failure(one["error"], errno.EIO).show()
    return [one for one in states if "error" not in one]


def _row(one: State) -> tuple[str, ...]:
    command = shlex.join(one["args"])
    short = command if len(command) <= _COMMAND_MAX else f"{command[: _COMMAND_MAX - 1]}…"
    return one["id"], one["image"], short, _moment(one["created"]), _status(one)


def _status(one: State) -> str:
    if one["status"] == "running":
        return f"running since {_moment(one['started'])}"
    if not has_ended(one):
        return one["status"]
    number, memory = one.get("signal"), ", out of memory" if one.get("oom") else ""
    if number is not None:
        how = f"killed by {_name(number)}"
    else:
        how = "ended, nobody knows how" if one.get("exit_code") is None else f"exited with {one['exit_code']}"
    return f"{how}{memory}, {_moment(one['finished'])}" if one.get("finished") else f"{how}{memory}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _moment(text: str | None) -> str:
    """RFC 3339 to the minute, in the local zone."""
    try:
        return local_time(int(datetime.fromisoformat(text or "").timestamp()) * 10**9)
    except ValueError:
        return "-"
