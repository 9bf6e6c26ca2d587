"""`imgfs plugins`: list the plugins and their status, from `.imgfs/plugins/`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from typing import Any

import click

from imgfs.cli.failure import from_os_error
from imgfs.cli.options import Command, format_option, mountpoint_option
from imgfs.cli.table import render_json, render_table
from imgfs.cli.tree import Tree


@click.command(cls=Command)
@mountpoint_option
@format_option("table")
def plugins(mountpoint: str, form: str) -> None:
    """List the plugins, and why a plugin does not run.

    If a required plugin does not start, `imgfs mount` fails with the reason, which is also in the log in the state
    directory. `disabled_plugins` in imgfs.toml disables plugins; tables `[plugins.KIND.ID]` contain their options.
    """
    tree = Tree.open(mountpoint)
    try:
        found = [_facts(f"{tree.path}/.imgfs/plugins", kind, one) for kind, one in _names(tree)]
    except OSError as error:
        raise from_os_error(error, "plugins", None, tree.log) from None
    if form == "json":
        click.echo(render_json(found))
    else:
        rows = [(f"{one['kind']}.{one['id']}", one["exports"]["distribution"], one["status"]) for one in found]
        click.echo(render_table(("PLUGIN", "FROM", "STATUS"), rows))


def _names(tree: Tree) -> Iterator[tuple[str, str]]:
    top = f"{tree.path}/.imgfs/plugins"
    return ((kind, one) for kind in sorted(os.listdir(top)) for one in sorted(os.listdir(f"{top}/{kind}")))


def _facts(top: str, kind: str, one: str) -> dict[str, Any]:
    def text(name: str) -> str:
        with open(f"{top}/{kind}/{one}/{name}", encoding="utf-8") as file:
            return file.read()

    options, exports = tomllib.loads(text("config")), tomllib.loads(text("exports"))
    return {"kind": kind, "id": one, "status": text("status").strip(), "options": options, "exports": exports}
