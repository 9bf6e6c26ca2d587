"""Options and arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from imgfs.cli.tree import Tree
from imgfs.mountpoint import DEFAULT_MOUNTPOINT, VARIABLE

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help text ends with a pointer to the explanation of the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Point to the program's help."""
        formatter.write_paragraph()
        formatter.write_text("Exit codes and environment: `imgfs --help`.")


class Group(click.Group):
    """A command with subcommands, whose help text ends with the same pointer."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Point to the program's help."""
        formatter.write_paragraph()
        formatter.write_text("Exit codes and environment: `imgfs --help`.")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the subcommands in the order in which they are defined."""
        return list(self.commands)


def tree_of(ctx: click.Context) -> Tree:
    """Return the tree that an incomplete command line refers to, for shell completion."""
    return Tree(os.fspath(ctx.params.get("mountpoint") or os.environ.get(VARIABLE) or DEFAULT_MOUNTPOINT))


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete registered names. Reads directories only, so no registry is asked."""
    try:
        names = [name.name for name in tree_of(ctx).names()]
    except OSError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def format_option(default: str) -> Callable[[F], F]:
    """Add the option `--format` to a command that prints a list or a document."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json"]),
        default=default,
        show_default=True,
        help="Output for people (table) or programs (json). JSON keys are stable.",
    )


mountpoint_option = click.option(
    "--mountpoint",
    type=click.Path(file_okay=False, readable=False),
    default=DEFAULT_MOUNTPOINT,
    envvar=VARIABLE,
    metavar="DIR",
    help="Where the tree is mounted. Default: $IMGFS_MOUNTPOINT, else /var/lib/imgfs.",
)

mountpoint_argument = click.argument(
    "mountpoint",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    default=DEFAULT_MOUNTPOINT,
    envvar=VARIABLE,
    metavar="[MOUNTPOINT]",
)

image_argument = click.argument("image", metavar="IMAGE", shell_complete=complete_name)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only errors on stderr.")
