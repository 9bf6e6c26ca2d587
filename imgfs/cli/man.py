"""`imgfs man`: manual pages out of the help texts, so that the two cannot differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import click

from imgfs import __version__
from imgfs.cli.failure import EXIT_CODES
from imgfs.cli.options import Command

_ENVIRONMENT = (("IMGFS_MOUNTPOINT", "Where the tree is mounted, where the command line does not say."),)
_FILES = (
    ("/var/lib/imgfs", "The default mountpoint."),
    ("/var/lib/imgfs-state", "Where root's daemon keeps content and names; imgfs.toml in it is the configuration."),
    ("DIR/.imgfs/log", "The end of the daemon's log."),
)


@click.command(cls=Command)
@click.argument("command", required=False, metavar="[COMMAND]")
def man(command: str | None) -> None:
    """Print the manual page of imgfs or of COMMAND.

    For man(1): `imgfs man pull | man -l -`, or into a file imgfs-pull.1 of a man1 directory.
    """
    root = click.get_current_context().find_root()
    group = root.command
    assert isinstance(group, click.Group)
    if command is None:
        click.echo(program_page(group, root))
        return
    found = group.get_command(root, command)
    if found is None:
        raise click.UsageError(f"no such command {command!r}; `imgfs --help` lists them")
    click.echo(command_page(found, click.Context(found, parent=root, info_name=command)))


def program_page(group: click.Group, ctx: click.Context) -> str:
    """imgfs(1): every command with its options."""
    lines = [_title("imgfs"), *_name("imgfs", group), ".SH SYNOPSIS", r".B imgfs", r"[OPTIONS] COMMAND [ARGS]..."]
    lines += [".SH DESCRIPTION", *_paragraphs(group.help), ".SH OPTIONS", *_options(group, ctx), ".SH COMMANDS"]
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        inner = click.Context(command, parent=ctx, info_name=name)
        lines += _section(command, inner)
    return "\n".join([*lines, *_end()])


def command_page(command: click.Command, ctx: click.Context) -> str:
    """imgfs-COMMAND(1)."""
    lines = [_title(f"imgfs-{ctx.info_name}"), *_name(f"imgfs-{ctx.info_name}", command)]
    lines += [".SH SYNOPSIS", _escaped(_synopsis(command, ctx)), ".SH DESCRIPTION", *_paragraphs(command.help)]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS", *_commands(command, ctx)]
    else:
        lines += [".SH OPTIONS", *_options(command, ctx)]
    return "\n".join([*lines, *_end(), ".SH SEE ALSO", r".BR imgfs (1)"])


def _section(command: click.Command, ctx: click.Context) -> list[str]:
    """One command, and those below it."""
    head = [f".SS {_escaped(_synopsis(command, ctx))}", *_paragraphs(command.help)]
    below = _commands(command, ctx) if isinstance(command, click.Group) else _options(command, ctx)
    return [*head, *below]


def _commands(group: click.Group, ctx: click.Context) -> list[str]:
    """The commands of a group within the program."""
    lines: list[str] = []
    for name, command in group.commands.items():
        lines += _section(command, click.Context(command, parent=ctx, info_name=name))
    return lines


def _title(page: str) -> str:
    return f'.TH {_escaped(page.upper())} 1 "" "imgfs {__version__}" "imgfs manual"'


def _name(page: str, command: click.Command) -> list[str]:
    return [".SH NAME", rf"{_escaped(page)} \- {_escaped(command.get_short_help_str(200).rstrip('.'))}"]


def _synopsis(command: click.Command, ctx: click.Context) -> str:
    return " ".join([_path(ctx), *command.collect_usage_pieces(ctx)])


def _path(ctx: click.Context) -> str:
    """The words that call the command, however the program itself was called."""
    return "imgfs" if ctx.parent is None else f"{_path(ctx.parent)} {ctx.info_name}"


def _options(command: click.Command, ctx: click.Context) -> list[str]:
    options = (one for one in command.get_params(ctx) if isinstance(one, click.Option))
    return _tagged(record for one in options if (record := one.get_help_record(ctx)))


def _end() -> list[str]:
    exits = [".SH EXIT STATUS", _escaped(EXIT_CODES.partition(": ")[2])]
    return [*exits, ".SH ENVIRONMENT", *_tagged(_ENVIRONMENT), ".SH FILES", *_tagged(_FILES)]


def _tagged(pairs: Iterable[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    for tag, text in pairs:
        lines += [".TP", rf"\fB{_escaped(tag)}\fR", _escaped(text)]
    return lines


def _paragraphs(text: str | None) -> list[str]:
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        lines += [".PP", _escaped(" ".join(paragraph.split()))]
    return lines


def _escaped(text: str) -> str:
    """Text that troff sets as it stands: no requests, no escapes, and hyphens that can be copied."""
    plain = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{plain}" if plain.startswith((".", "'")) else plain
