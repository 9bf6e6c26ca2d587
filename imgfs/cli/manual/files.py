"""The manual pages imgfs.toml(5), generated from the table of options, and mount.imgfs(8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from imgfs.cli.manual.roff import escaped, example, heading, paragraphs, see_also, tagged, title
from imgfs.cli.service import mount_helper
from imgfs.cli.service.mount_options import SPELLINGS
from imgfs.cli.silence import silent

if TYPE_CHECKING:
    from imgfs.config.options import Option

_ABOUT = """\
When it starts, the daemon of imgfs reads one TOML file: the one that --config names, else imgfs.toml in the state
directory. The file is optional, because every option has a default. An unknown option or a wrong value stops the start;
the message contains the line and the likely spelling.

The environment overrides the file: the variable is IMGFS_ and the name in capitals, a list is separated by blanks. The
command line overrides both: `imgfs mount -o NAME=VALUE`, or the options in fstab. `imgfs config show` prints each value
and its origin; so does the file .imgfs/config below the mountpoint."""
_PLUGINS = """\
Options of plugins are in separate tables. The file .imgfs/plugins/KIND/ID/config below the mountpoint contains the
values in force. The installed plugins have these options:"""
_EXAMPLE = (
    'access = "group:containers"',
    'plain_http = ["registry.lan:5000"]',
    "free_space_percent = 10",
)


def config_page() -> str:
    """Return imgfs.toml(5)."""
    from imgfs.config.options import table

    lines = [title("imgfs.toml", 5), *heading("imgfs.toml", "options of the daemon of imgfs")]
    lines += [".SH DESCRIPTION", *paragraphs(_ABOUT), ".SH OPTIONS", *tagged(option_texts(table()))]
    lines += [".SH PLUGINS", *paragraphs(_PLUGINS), *_plugins(), ".SH EXAMPLE", *example(*_EXAMPLE)]
    lines += [".SH FILES", *tagged([("/var/lib/imgfs-state/imgfs.toml", "The configuration of root's daemon.")])]
    return "\n".join([*lines, *see_also(("imgfs", 1), ("imgfs-config", 1), ("mount.imgfs", 8))])


def helper_page() -> str:
    """Return mount.imgfs(8)."""
    lines = [title("mount.imgfs", 8), *heading("mount.imgfs", "mount the tree of imgfs")]
    lines += [".SH SYNOPSIS", escaped(mount_helper.USAGE)]
    lines += [".SH DESCRIPTION", *paragraphs("\n\n".join(mount_helper.TEXT))]
    lines += [".SH FLAGS", *tagged(mount_helper.FLAGS), ".SH OPTIONS", *tagged(SPELLINGS)]
    lines += [
        ".PP",
        *paragraphs("Options for mount(8) and systemd, like noauto, _netdev and x-systemd.*, are ignored."),
    ]
    lines += [".SH EXIT STATUS", *tagged(mount_helper.EXITS), ".SH EXAMPLE", *paragraphs("A line of fstab(5):")]
    lines += [".PP", *example(mount_helper.EXAMPLE)]
    return "\n".join([*lines, *see_also(("imgfs-mount", 1), ("imgfs.toml", 5), ("mount", 8), ("fstab", 5))])


def option_texts(options: Mapping[str, Option]) -> list[tuple[str, str]]:
    """Return every option with its description, allowed values and default, for help and manual."""
    return [(name, option.text if option.is_table else _told(option)) for name, option in options.items()]


def _told(option: Option) -> str:
    from imgfs.config.toml import written

    expected = f"{option.expected[0].upper()}{option.expected[1:]}; default {written(option.default)}."
    return f"{option.text} {expected}".strip()


def _plugins() -> Iterator[str]:
    """Yield the options of the installed plugins."""
    from imgfs.config.options import options_of
    from imgfs.plugins.finding import find_plugins

    with silent():
        plugins = find_plugins()
    for found in plugins:
        if found.plugin and found.plugin.options:
            yield f".SS {escaped(f'[plugins.{found.name}]')}"
            yield from tagged(option_texts(options_of(found.plugin.options)))
