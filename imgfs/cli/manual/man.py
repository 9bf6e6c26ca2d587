"""`imgfs man`: manual pages generated from the help texts and the table of options, so that they cannot differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from imgfs.cli.failure import EXIT_CODES
from imgfs.cli.manual.files import config_page, helper_page
from imgfs.cli.manual.roff import escaped, heading, paragraphs, see_also, tagged, title
from imgfs.cli.options import Command

_ENVIRONMENT = (
    ("IMGFS_MOUNTPOINT", "The mountpoint, if the command line does not name one."),
    ("IMGFS_<OPTION>", "An option of imgfs.toml (not a table), in capitals. It overrides the file."),
    ("STATE_DIRECTORY", "The state directory, if --state is not given. systemd sets it."),
)
_FILES = (
    ("/var/lib/imgfs", "The default mountpoint."),
    ("/var/lib/imgfs-state", "The state directory of root's daemon; imgfs.toml in it is the configuration."),
    ("DIR/.imgfs/log", "The last part of the daemon's log."),
)
_FILE_PAGES = {"imgfs.toml": (5, config_page), "mount.imgfs": (8, helper_page)}
"""Pages that do not describe a command: section and text."""


def complete_page(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete page names."""
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    pages = [*root.command.list_commands(root), *_FILE_PAGES]
    return [CompletionItem(page) for page in pages if page.startswith(incomplete)]


@click.command(cls=Command)
@click.argument("page", required=False, metavar="[PAGE]", shell_complete=complete_page)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write all pages below DIR, in the layout of man(1): man1, man5, man8.",
)
def man(page: str | None, directory: Path | None) -> None:
    """Print the manual page of imgfs or of PAGE.

    PAGE is a command, `imgfs.toml` or `mount.imgfs`. To read a page with man(1), run `imgfs man pull | man -l -`. To
    install all pages, run `imgfs man --directory /usr/local/share/man`.
    """
    root = click.get_current_context().find_root()
    group = root.command
    assert isinstance(group, click.Group)
    if directory is not None and page is not None:
        raise click.UsageError("--directory writes all pages; it cannot be combined with PAGE")
    if directory is not None:
        for name, section, text in all_pages(group, root):
            path = directory / f"man{section}" / f"{name}.{section}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    elif page is None:
        click.echo(program_page(group, root))
    elif page in _FILE_PAGES:
        click.echo(_FILE_PAGES[page][1]())
    elif found := group.get_command(root, page):
        click.echo(command_page(found, click.Context(found, parent=root, info_name=page)))
    else:
        raise click.UsageError(f"no page {page!r}; pages are the commands, imgfs.toml and mount.imgfs")


def all_pages(group: click.Group, ctx: click.Context) -> Iterator[tuple[str, int, str]]:
    """Yield name, section and text of every page."""
    yield "imgfs", 1, program_page(group, ctx)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield f"imgfs-{name}", 1, command_page(command, click.Context(command, parent=ctx, info_name=name))
    for name, (section, made) in _FILE_PAGES.items():
        yield name, section, made()


def program_page(group: click.Group, ctx: click.Context) -> str:
    """Return imgfs(1): every command with its options."""
    lines = [title("imgfs", 1), *heading("imgfs", _short(group)), ".SH SYNOPSIS", ".B imgfs"]
    lines += ["[OPTIONS] COMMAND [ARGS]...", ".SH DESCRIPTION", *paragraphs(group.help)]
    lines += [".SH OPTIONS", *_options(group, ctx), ".SH COMMANDS"]
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        inner = click.Context(command, parent=ctx, info_name=name)
        lines += _section(command, inner)
    return "\n".join([*lines, *_end(), *see_also(("imgfs.toml", 5), ("mount.imgfs", 8))])


def command_page(command: click.Command, ctx: click.Context) -> str:
    """Return imgfs-COMMAND(1)."""
    page = f"imgfs-{ctx.info_name}"
    lines = [title(page, 1), *heading(page, _short(command))]
    lines += [".SH SYNOPSIS", escaped(_synopsis(command, ctx)), ".SH DESCRIPTION", *paragraphs(command.help)]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS", *_commands(command, ctx)]
    else:
        lines += [".SH OPTIONS", *_options(command, ctx)]
    return "\n".join([*lines, *_end(), *see_also(("imgfs", 1), ("imgfs.toml", 5))])


def _section(command: click.Command, ctx: click.Context) -> list[str]:
    """Describe one command and its subcommands."""
    head = [f".SS {escaped(_synopsis(command, ctx))}", *paragraphs(command.help)]
    below = _commands(command, ctx) if isinstance(command, click.Group) else _options(command, ctx)
    return [*head, *below]


def _commands(group: click.Group, ctx: click.Context) -> list[str]:
    """Describe the subcommands of a group."""
    lines: list[str] = []
    for name, command in group.commands.items():
        lines += _section(command, click.Context(command, parent=ctx, info_name=name))
    return lines


def _short(command: click.Command) -> str:
    return command.get_short_help_str(200)


def _synopsis(command: click.Command, ctx: click.Context) -> str:
    return " ".join([_path(ctx), *command.collect_usage_pieces(ctx)])


def _path(ctx: click.Context) -> str:
    """Return the full name of the command. It begins with `imgfs`, even if the executable has another name."""
    return "imgfs" if ctx.parent is None else f"{_path(ctx.parent)} {ctx.info_name}"


def _options(command: click.Command, ctx: click.Context) -> list[str]:
    options = (one for one in command.get_params(ctx) if isinstance(one, click.Option))
    return tagged(record for one in options if (record := one.get_help_record(ctx)))


def _end() -> list[str]:
    exits = [".SH EXIT STATUS", *paragraphs(EXIT_CODES.partition(": ")[2])]
    return [*exits, ".SH ENVIRONMENT", *tagged(_ENVIRONMENT), ".SH FILES", *tagged(_FILES)]
