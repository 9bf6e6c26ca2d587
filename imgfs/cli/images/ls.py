"""`imgfs ls`: list the registered names and how much of each image is local."""

from __future__ import annotations

from typing import TypedDict

import click

from imgfs.cli.options import Command, format_option, mountpoint_option
from imgfs.cli.table import human_size, local_time, render_json, render_table, short_digest, utc_time
from imgfs.cli.tree import ImageStatus, RegisteredName, Tree


class ImageRow(TypedDict):
    """One name in the JSON of `imgfs ls`. `size` and `local` count bytes of compressed blobs."""

    name: str
    digest: str
    updated: str
    complete: bool
    size: int
    local: int


@click.command(cls=Command)
@mountpoint_option
@format_option("table")
@click.option("-q", "--quiet", is_flag=True, help="Print only the names, one per line.")
def ls(mountpoint: str, form: str, *, quiet: bool) -> None:
    """List the registered image names.

    SIZE is the size of the image's blobs for the mount's platform. COMPLETE says whether all of them are local. Sends
    no request to a registry.
    """
    tree = Tree.open(mountpoint)
    names = list(tree.names())
    if quiet:
        for name in names:
            click.echo(name.name)
    elif form == "json":
        click.echo(render_json([row for _, row in _rows(tree, names)]))
    else:
        click.echo(_table(_rows(tree, names)))


def _rows(tree: Tree, names: list[RegisteredName]) -> list[tuple[RegisteredName, ImageRow]]:
    known: dict[str, ImageStatus | None] = {}
    rows: list[tuple[RegisteredName, ImageRow]] = []
    for name in names:
        if name.digest not in known:
            known[name.digest] = _status(tree, name.digest)
        if status := known[name.digest]:
            rows.append((name, _row(name, status)))
    return rows


def _status(tree: Tree, digest: str) -> ImageStatus | None:
    """Return the status, or None if the image's last name was removed while this command ran."""
    try:
        return tree.status(digest)
    except FileNotFoundError:
        return None


def _row(name: RegisteredName, status: ImageStatus) -> ImageRow:
    return {
        "name": name.name,
        "digest": name.digest,
        "updated": utc_time(name.updated),
        "complete": status["complete"],
        "size": sum(part["size"] for part in status["parts"]),
        "local": sum(part["offset"] for part in status["parts"]),
    }


def _table(rows: list[tuple[RegisteredName, ImageRow]]) -> str:
    cells = [
        (
            name.name,
            short_digest(name.digest),
            local_time(name.updated),
            "yes" if row["complete"] else "no",
            human_size(row["size"]) if row["size"] else "-",
        )
        for name, row in rows
    ]
    return render_table(("NAME", "DIGEST", "UPDATED", "COMPLETE", "SIZE"), cells, right={4})
