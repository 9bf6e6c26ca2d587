"""The program: its commands by name, each loaded when it is called."""

from __future__ import annotations

import importlib

import click

from imgfs import __version__

_COMMANDS = {
    "mount": ("imgfs.cli.mounting", "mount"),
    "umount": ("imgfs.cli.mounting", "umount"),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), attribute)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imgfs")
def main() -> None:
    """Container images as files.

    `imgfs mount DIR` shows images/, content/ and snapshots/ below DIR; reading an image that is not here brings it in.
    Exit codes: 0 ok, 1 other, 2 usage, 3 not found, 4 denied, 5 network, 6 verification failed, 7 busy, 8 no space.
    """
