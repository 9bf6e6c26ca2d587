"""The context of a command that a child of the fork server runs for the calling process (imgfs.forkserver)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from imgfs.cli.containers.site import Facts
    from imgfs.execution.launch import IdleSupervisor


class ForkedCommand:
    """The click context object of a command that runs in a child of the fork server."""

    def __init__(self, facts: Facts | None, waiting: IdleSupervisor) -> None:
        """`facts` describe the fork server's mount, if they could be read. `waiting` is the command's supervisor."""
        self.facts = facts
        self.waiting = waiting


def forked_command() -> ForkedCommand | None:
    """Return the context of the running command, or None if the calling process runs the command itself."""
    return click.get_current_context().find_object(ForkedCommand)


class Declined(Exception):
    """The calling process has to run the command itself: it needs its own terminal. Nothing was done yet."""
