"""`imgfs snapshot ls`: the snapshots with their parents and what they take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import TypedDict

import click

from imgfs.cli.options import Command, format_option, mountpoint_option
from imgfs.cli.snapshots.ids import chains, own
from imgfs.cli.table import human_size, local_time, render_json, render_table, short_digest, utc_time
from imgfs.cli.tree import Tree
from imgfs.oci.digest import is_digest


class Row(TypedDict):
    """One snapshot in the JSON of `imgfs snapshot ls`.

    `kind` is active, view or committed. `parent` is an id, null without one; of a view it is what the view pins.
    `usage` are bytes on disk of its own changes (of a chain: of its layer's tar). `children` are ids.
    """

    id: str
    kind: str
    parent: str | None
    usage: int | None
    created: str
    children: list[str]


@click.command(cls=Command)
@mountpoint_option
@format_option("table")
@click.option("-a", "--all", "is_all", is_flag=True, help="The chains of images too, as far as they are here.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids, one a line.")
def ls(mountpoint: str, form: str, *, is_all: bool, quiet: bool) -> None:
    """List the snapshots.

    USAGE is what a snapshot's own changes take on disk; a writable one is measured for it. CHILDREN counts those that
    lie on it and views of it. Asks no registry and mounts nothing.
    """
    tree = Tree.open(mountpoint)
    ids = own(tree) + (chains(tree) if is_all else [])
    if quiet:
        for id in ids:
            click.echo(os.fsencode(id))
    elif form == "json":
        click.echo(render_json(list(_rows(tree, ids))))
    else:
        click.echo(_table(list(_rows(tree, ids))))


def _rows(tree: Tree, ids: list[str]) -> Iterator[Row]:
    for id in ids:
        try:
            yield _view(tree, id) if os.path.islink(tree.snapshot(id)) else _row(tree, id)
        except FileNotFoundError:
            continue  # it went, or was committed, while this command ran


def _view(tree: Tree, id: str) -> Row:
    place = tree.snapshot(id)
    return {
        "id": id,
        "kind": "view",
        "parent": _id_behind(place),
        "usage": 0,
        "created": utc_time(os.lstat(place).st_mtime_ns),
        "children": [],
    }


def _row(tree: Tree, id: str) -> Row:
    place = tree.snapshot(id)
    return {
        "id": id,
        "kind": _fact(place, "kind"),
        "parent": _parent(place),
        "usage": _usage(place),
        "created": _fact(place, "created"),
        "children": _fact(place, "children").splitlines(),
    }


def _usage(place: str) -> int | None:
    """None for a snapshot whose directory is lost: `user.imgfs.error` tells, and the others are listed."""
    try:
        return int(_fact(place, "usage"))
    except FileNotFoundError:
        raise
    except OSError:
        return None


def _fact(place: str, name: str) -> str:
    return os.fsdecode(os.getxattr(place, f"user.imgfs.{name}"))


def _parent(place: str) -> str | None:
    try:
        return _id_behind(f"{place}/parent")
    except FileNotFoundError:
        os.lstat(place)
        return None


def _id_behind(link: str) -> str:
    return os.readlink(link).rpartition("/")[2]


def _table(rows: list[Row]) -> str:
    cells = [
        (
            _short(row["id"]),
            row["kind"],
            _short(row["parent"]) if row["parent"] else "-",
            local_time(int(datetime.fromisoformat(row["created"]).timestamp()) * 10**9),
            "?" if row["usage"] is None else human_size(row["usage"]),
            str(len(row["children"])) if row["children"] else "-",
        )
        for row in rows
    ]
    return render_table(("ID", "KIND", "PARENT", "CREATED", "USAGE", "CHILDREN"), cells, right={4, 5})


def _short(id: str) -> str:
    return short_digest(id) if is_digest(id) else id
