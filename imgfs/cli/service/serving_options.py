"""Options that select the state directory and configuration, for `imgfs mount` and the commands that examine them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from imgfs.cli.service.mount_options import MountOptions, option_names, parse_options


def complete_option(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the last option of a comma-separated list, and the values of options with a fixed set."""
    from imgfs.config.options import table

    before, comma, word = incomplete.rpartition(",")
    name, equals, _ = word.partition("=")
    offered = list(option_names())
    if equals and name in table():
        offered = [f"{name}={choice}" for choice in table()[name].choices]
    return [CompletionItem(f"{before}{comma}{one}") for one in offered if one.startswith(word)]


def asked_for(texts: tuple[str, ...], state: Path | None, config: Path | None) -> MountOptions:
    """Merge `-o` with `--state` and `--config`, which override it. Raises Invalid and Unsupported."""
    options = parse_options(texts)
    named = Path(os.path.abspath(config)) if config else options.config  # the daemon changes its working directory
    return replace(options, state=state or options.state, config=named)


def state_of(options: MountOptions) -> Path:
    """Return the real path of the state directory. Raises Invalid if a user has no default."""
    from imgfs.config import default_state

    return Path(os.path.realpath(options.state or default_state()))


state_option = click.option(
    "--state",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    metavar="DIR",
    help="The state directory. Default: $STATE_DIRECTORY, else /var/lib/imgfs-state (root) or the XDG state home.",
)

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    metavar="FILE",
    help="The configuration file (TOML). Default: imgfs.toml in the state directory, if it exists.",
)

mount_options_option = click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPTIONS",
    shell_complete=complete_option,
    help="Comma-separated options as in fstab: NAME=VALUE of imgfs.toml, ro, allow_other, nosuid.",
)
