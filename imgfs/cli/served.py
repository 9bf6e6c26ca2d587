"""How a command knows that the starter's child does it, and not the process that was called (imgfs.forkserver)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from imgfs.cli.containers.site import Facts
    from imgfs.execution.launch import IdleSupervisor


class Served:
    """What the context of such a command has for its object."""

    def __init__(self, facts: Facts | None, waiting: IdleSupervisor) -> None:
        """`facts` of the mount whose starter it is, where they could be had; `waiting`, its supervisor-to-be."""
        self.facts = facts
        self.waiting = waiting


def served() -> Served | None:
    """What there is of it for the command that runs now."""
    return click.get_current_context().find_object(Served)


class Declined(Exception):
    """The process that was called does it: of a terminal the kernel tells it apart. Nothing was done yet."""
