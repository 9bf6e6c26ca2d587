"""`imgfs tags`: list the tags of a repository, or the repositories of a registry."""

from __future__ import annotations

import click

from imgfs.cli.failure import from_os_error, report_line
from imgfs.cli.options import Command, format_option, mountpoint_option, quiet_option
from imgfs.cli.table import render_json
from imgfs.cli.tree import Tree
from imgfs.oci.reference import expand_repository


@click.command(cls=Command)
@click.argument("place", metavar="REPOSITORY|HOST")
@mountpoint_option
@format_option("table")
@quiet_option
def tags(place: str, mountpoint: str, form: str, *, quiet: bool) -> None:
    """List a repository's tags or a registry's repositories.

    REPOSITORY is a name without a tag (`alpine` stands for docker.io/library/alpine). HOST is a registry; many
    registries refuse to list their repositories. The registry is asked on every call. Prints one entry per line.
    """
    tree = Tree.open(mountpoint)
    host, repository = expand_repository(place)
    full = f"{host}/{repository}" if repository else host
    if full != place and not quiet:
        report_line(f"{place} stands for {full}")
    names = _read(tree, host, repository)
    click.echo(render_json(names) if form == "json" else "\n".join(names), nl=form == "json" or bool(names))


def _read(tree: Tree, host: str, repository: str) -> list[str]:
    try:
        with open(tree.list_file(host, repository), encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError as error:
        subject = f"{host}/{repository}" if repository else host
        raise from_os_error(error, subject, tree.reason(tree.link(host)), tree.log) from None
