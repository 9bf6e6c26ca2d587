"""`imgfs snapshot ls`: list the snapshots with their parents and disk usage."""

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


class SnapshotRow(TypedDict):
    """One snapshot in the JSON of `imgfs snapshot ls`.

    `kind` is active, view or committed. `parent` is an ID or null; for a view it is the target. `usage` is the size of
    the snapshot's own changes on disk in bytes; for a chain it is the size of its layer's tar. `children` are IDs.
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
@click.option("-a", "--all", "is_all", is_flag=True, help="Also list the local chains of images.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the IDs, one per line.")
def ls(mountpoint: str, form: str, *, is_all: bool, quiet: bool) -> None:
    """List the snapshots.

    USAGE is the size of a snapshot's own changes on disk; writable snapshots are measured for it. CHILDREN counts the
    snapshots on top of it and the views of it. The command sends no request and mounts nothing.
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


def _rows(tree: Tree, ids: list[str]) -> Iterator[SnapshotRow]:
    for id in ids:
        try:
            yield _view(tree, id) if os.path.islink(tree.snapshot(id)) else _row(tree, id)
        except FileNotFoundError:
            continue  # the snapshot was removed or committed while this command ran


def _view(tree: Tree, id: str) -> SnapshotRow:
    place = tree.snapshot(id)
    return {
        "id": id,
        "kind": "view",
        "parent": _id_behind(place),
        "usage": 0,
        "created": utc_time(os.lstat(place).st_mtime_ns),
        "children": [],
    }


def _row(tree: Tree, id: str) -> SnapshotRow:
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
    """Return the usage, or None for a snapshot whose directory is lost (see its `user.imgfs.error`)."""
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


def _table(rows: list[SnapshotRow]) -> str:
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
