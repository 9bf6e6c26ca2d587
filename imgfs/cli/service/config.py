"""`imgfs config`: show the options, their values and the origin of each value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgfs.cli.failure import from_os_error
from imgfs.cli.options import Command, Group, format_option, mountpoint_option
from imgfs.cli.service.serving_options import asked_for, config_option, mount_options_option, state_of, state_option
from imgfs.cli.silence import silent
from imgfs.cli.table import render_json, render_table
from imgfs.cli.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgfs.config.settings import OptionValue


class ConfigGroup(Group):
    """A group whose help text ends with the table of options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Describe every option as imgfs.toml(5) does."""
        from imgfs.cli.manual.files import option_texts
        from imgfs.config.options import table

        with formatter.section("Options of imgfs.toml"):
            formatter.write_dl(option_texts(table()))
        super().format_epilog(ctx, formatter)


@click.group(cls=ConfigGroup)
def config() -> None:
    """Show the options of the daemon and their origins.

    Options are read from imgfs.toml in the state directory, or from the file that --config names. The environment
    (IMGFS_ and the name in capitals) overrides the file, and `imgfs mount -o NAME=VALUE` overrides both. `imgfs man
    imgfs.toml` describes all options, including those of plugins.
    """


@config.command(cls=Command)
@mountpoint_option
@state_option
@config_option
@mount_options_option
@format_option("table")
def show(mountpoint: str, state: Path | None, config_path: Path | None, options: tuple[str, ...], form: str) -> None:
    """Print each option, including those of plugins, with its value and origin.

    If a tree is mounted, the values are those in force (.imgfs/config). If none is mounted, or with --state, --config
    or -o, the values are those that `imgfs mount` would use with the same arguments.
    """
    is_mounted = not (state or config_path or options) and _is_mounted(mountpoint)
    said = _in_force(mountpoint) if is_mounted else _found(state, config_path, options)
    if form == "json":
        import msgspec

        found = [{"option": name, "value": one.value, "origin": one.origin} for name, one in said.items()]
        click.echo(render_json(msgspec.to_builtins(found)))
    else:
        from imgfs.config.toml import written

        rows = [(name, written(one.value), one.origin) for name, one in said.items()]
        click.echo(render_table(("OPTION", "VALUE", "ORIGIN"), rows))


def _is_mounted(mountpoint: str) -> bool:
    from imgfs.kernel.mounts import is_ours

    return is_ours(os.path.realpath(mountpoint))


def _in_force(mountpoint: str) -> Mapping[str, OptionValue]:
    from imgfs.config.settings import parse_settings

    path = f"{Tree.open(mountpoint).path}/.imgfs/config"
    try:
        with open(path, encoding="utf-8") as file:
            return parse_settings(file.read())
    except OSError as error:
        raise from_os_error(error, path) from None


def _found(state: Path | None, config_path: Path | None, options: tuple[str, ...]) -> Mapping[str, OptionValue]:
    from imgfs.config import load_settings
    from imgfs.plugins.finding import find_plugins
    from imgfs.plugins.options import check_names, options_in_force

    asked = asked_for(options, state, config_path)
    settings = load_settings(asked.config, state_of(asked), os.environ, asked.given)
    sections, off, places = settings.config.plugins, settings.config.disabled_plugins, settings.origins
    with silent():  # `imgfs plugins` and `imgfs doctor` report plugins that cannot be loaded
        found = find_plugins(off)
    check_names(sections, off, [one.name for one in found], places)
    return settings.values(options_in_force((one.plugin for one in found if one.plugin), sections, places))
