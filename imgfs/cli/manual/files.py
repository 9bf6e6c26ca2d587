"""The pages of what is no command: imgfs.toml(5), out of the table of options, and mount.imgfs(8)."""

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
The daemon of imgfs reads one file in TOML when it starts: the one that --config names, else imgfs.toml in the state
directory. None is needed: every option has a default. An option that is unknown or has a wrong value stops the start,
with the line and the likely spelling.

The environment goes before the file: IMGFS_ and the name in capitals, a list as words with blanks between them. The
command line goes before both: `imgfs mount -o NAME=VALUE`, or the options in fstab. `imgfs config show` tells each
value and where it is from; so does the file .imgfs/config below the mountpoint of the tree that is mounted."""
_PLUGINS = """\
Options of plugins are in tables of their own. The file .imgfs/plugins/KIND/ID/config below the mountpoint has those in
force. The plugins that are installed here have these:"""
_EXAMPLE = (
    'access = "group:containers"',
    'plain_http = ["registry.lan:5000"]',
    "free_space_percent = 10",
)


def config_page() -> str:
    """imgfs.toml(5)."""
    from imgfs.config.options import table

    lines = [title("imgfs.toml", 5), *heading("imgfs.toml", "options of the daemon of imgfs")]
    lines += [".SH DESCRIPTION", *paragraphs(_ABOUT), ".SH OPTIONS", *tagged(option_texts(table()))]
    lines += [".SH PLUGINS", *paragraphs(_PLUGINS), *_plugins(), ".SH EXAMPLE", *example(*_EXAMPLE)]
    lines += [".SH FILES", *tagged([("/var/lib/imgfs-state/imgfs.toml", "The configuration of root's daemon.")])]
    return "\n".join([*lines, *see_also(("imgfs", 1), ("imgfs-config", 1), ("mount.imgfs", 8))])


def helper_page() -> str:
    """mount.imgfs(8)."""
    lines = [title("mount.imgfs", 8), *heading("mount.imgfs", "mount the tree of imgfs")]
    lines += [".SH SYNOPSIS", escaped(mount_helper.USAGE)]
    lines += [".SH DESCRIPTION", *paragraphs("\n\n".join(mount_helper.TEXT))]
    lines += [".SH FLAGS", *tagged(mount_helper.FLAGS), ".SH OPTIONS", *tagged(SPELLINGS)]
    lines += [
        ".PP",
        *paragraphs("What is meant for mount(8) and systemd, like noauto, _netdev and x-systemd.*, is passed over."),
    ]
    lines += [".SH EXIT STATUS", *tagged(mount_helper.EXITS), ".SH EXAMPLE", *paragraphs("A line of fstab(5):")]
    lines += [".PP", *example(mount_helper.EXAMPLE)]
    return "\n".join([*lines, *see_also(("imgfs-mount", 1), ("imgfs.toml", 5), ("mount", 8), ("fstab", 5))])


def option_texts(options: Mapping[str, Option]) -> list[tuple[str, str]]:
    """Every option with its meaning, what it may be and its default, as help and manual tell it."""
    return [(name, option.text if option.is_table else _told(option)) for name, option in options.items()]


def _told(option: Option) -> str:
    from imgfs.config.toml import written

    expected = f"{option.expected[0].upper()}{option.expected[1:]}; default {written(option.default)}."
    return f"{option.text} {expected}".strip()


def _plugins() -> Iterator[str]:
    """The options of the plugins that are installed here."""
    from imgfs.config.options import options_of
    from imgfs.plugins.finding import find_plugins

    with silent():
        plugins = find_plugins()
    for found in plugins:
        if found.plugin and found.plugin.options:
            yield f".SS {escaped(f'[plugins.{found.name}]')}"
            yield from tagged(option_texts(options_of(found.plugin.options)))
